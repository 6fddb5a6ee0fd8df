"""Writing a graph in low precision where it was decided to be."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Graph, Node, RuleChain, Value, constant
from lepton_jax.passes.quantize._precision import products
from lepton_jax.passes.quantize._precision.paint import Paint, is_manual
from lepton_jax.passes.quantize._precision.sites import takes_fp8
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import write_before

PRODUCT = "low-product"
CHAIN = "low-chain"


def write(graph: Graph, paint: Paint, low: str, fp8: bool, native: bool) -> None:
    """Rewrite one graph, not its regions.

    Args:
        paint: what runs in low precision.
        low: the low dtype.
        fp8: whether products that can take float8 do.
        native: whether the target's own products give low results of sums in float32.
    """
    _Writer(graph, paint, low, fp8, native).run()


class _Writer:
    """Walks a graph in order; every value has at most one low and one wide form, written where first read."""

    def __init__(self, graph: Graph, paint: Paint, low: str, fp8: bool, native: bool) -> None:
        self.graph, self.paint, self.native = graph, paint, native
        self.plain = not native or is_manual(graph)
        self.fp8 = fp8 and not is_manual(graph)
        self.dtype = low
        self.made_low = paint.low
        self.low: dict[Value, Value] = {}
        self.wide: dict[Value, Value] = {}
        self.replaced: set[Node] = {*paint.products, *paint.chain}

    def run(self) -> None:
        nodes = list(self.graph)
        for node in nodes:
            if node in self.paint.products:
                self.product(node)
            elif node in self.paint.chain:
                self.follow(node)
            else:
                self.other(node)
        for node in reversed(nodes):
            if node in self.replaced and node.is_dead:
                self.graph.erase(node)

    def product(self, node: Node) -> None:
        operands = [self.low_of(value, node) for value in node.operands]
        is_low = node in self.paint.narrow
        if node.op == "conv_general_dilated":
            (found,) = write_before(self.convolution(node, operands, is_low), node, PRODUCT)
        else:
            form = self.form(node, is_low)
            dims = node.params["dimension_numbers"]
            (found,) = write_before(rewrite(products.dot, *operands, dims=dims, form=form), node, PRODUCT)
        if not is_low:
            node.result.replace_uses(found)
        elif found.dtype == self.dtype:
            self.low[node.result] = found
        else:
            self.low[node.result] = self.cast(found, self.dtype, node)

    def form(self, node: Node, is_low: bool) -> products.Form:
        if self.fp8 and takes_fp8(node):
            return "fp8"
        if self.native and is_low:
            return "low"
        return "plain" if self.plain else "differentiable"

    def convolution(self, node: Node, operands: list[Value], is_low: bool) -> Any:
        left_out = ("precision", "preferred_element_type", "out_sharding")
        params = tuple((key, value) for key, value in node.params.items() if key not in left_out)
        return rewrite(products.convolution, *operands, params=params, low=is_low)

    def follow(self, node: Node) -> None:
        operands = [self.low_of(v, node) if v.dtype == jnp.float32 else v for v in node.operands]
        if node.regions:
            self.low[node.result] = write_before(rewrite(jax.nn.relu, *operands), node, CHAIN)[0]
            return
        avals = [value.aval.update(dtype=jnp.dtype(self.dtype), weak_type=False) for value in node.results]
        fresh = Node(
            node.op,
            node.primitive,
            operands,
            avals,
            node.params,
            raw=node.raw,
            source=node.source,
            context=node.context,
            rule=RuleChain(CHAIN, node.rule),
        )
        self.graph.insert(fresh, node)
        self.low.update(zip(node.results, fresh.results, strict=True))

    def other(self, node: Node) -> None:
        """Let an operation that computes as before read float32 numbers."""
        if node.op == "convert_element_type" and node.result.dtype == self.dtype:
            found = self.low.get(node.operands[0])
            if found is not None:
                node.result.replace_uses(found)
                self.replaced.add(node)
            self.low.setdefault(node.operands[0], node.result)
            return
        for position, value in enumerate(node.operands):
            if value.node in self.made_low:
                node.set_operand(position, self.wide_of(value, node))

    def low_of(self, value: Value, before: Node) -> Value:
        """A value in the low dtype."""
        if value.dtype == self.dtype:
            return value
        found = self.low.get(value)
        if found is None:
            found = self.low[value] = self.lowered(value, before)
        return found

    def lowered(self, value: Value, before: Node) -> Value:
        if value.is_const and value.ndim == 0:
            number = np.asarray(value.const).astype(jnp.dtype(self.dtype))
            return constant(number, value.aval.update(dtype=number.dtype, weak_type=False), value.literal)
        maker = value.node
        if maker is not None and maker.op == "convert_element_type" and maker.operands[0].dtype == self.dtype:
            return maker.operands[0]  # converted up and down again: no number changes
        return self.cast(value, self.dtype, before)

    def wide_of(self, value: Value, before: Node) -> Value:
        """What a low value stands for, in float32."""
        found = self.wide.get(value)
        if found is None:
            found = self.wide[value] = self.cast(self.low[value], "float32", before)
        return found

    def cast(self, value: Value, dtype: str, before: Node) -> Value:
        (found,) = write_before(rewrite(products.cast, value, dtype=dtype), before, PRODUCT)
        return found
