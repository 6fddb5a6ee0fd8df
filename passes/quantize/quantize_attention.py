"""Attention's two products on codes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import Sources, parameters_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.numerics.formats import get_format
from lepton_jax.numerics.quantize import Scheme, encode, scale_of
from lepton_jax.passes.fuse._attention.axes import Labels, operand_labels
from lepton_jax.passes.fuse._attention.match import Found, find
from lepton_jax.passes.quantize._quantize.dots import Dims, in_result
from lepton_jax.rewrite import Pass, PassContext, Site, erase_dead, rewrite
from lepton_jax.rewrite.replacement import write

_RULES: Final = {"scores": "quantized-scores", "mix": "quantized-mix"}

_MOST: Final = 256
"""So many operations at most are between the scores and the product of queries and keys."""


@dataclass(frozen=True)
class QuantizeAttention(Pass):
    """Multiplies queries and keys, and the softmax's weights and values, as codes of eight bits.

    Before:
        %3 = dot_general %q %k;  %9 = softmax %3;  %10 = dot_general %9 %v
    After:
        %a = max |%q| / 127;  %b = max |%k| / 127                       (for each query and key, in each head)
        %3 = dot_general round(%q / %a) round(%k / %b) · %a · %b
        %c = max %9 / 127;  %d = max |%v| / 127                         (for each query; for each channel)
        %10 = dot_general round(%9 / %c) round(%v / %d) · %c · %d

    Attention is found by its structure, as the pass `attention` finds it: whatever scales, masks, biases and
    caps stand between the products stay as they are, in floats. The largest weight of a query has the largest
    code, however many keys there are: weights that were divided by their sum are rounded as those before the
    division. A row of weights with NaN stays NaN. What the pass `attention` has put in blocks is left alone:
    `default` contains it, and it takes long sequences, so name `default,-attention,quantize-attention` to
    quantise those too. Approximate; it runs when it is named.

    Attributes:
        format: of the codes: `int8`, `fp8_e4m3` or `fp8_e5m2`.
        scores: quantise the product of queries and keys.
        mix: quantise the product of weights and values.

    Raises:
        ValueError: another format.
    """

    name: ClassVar[str] = "quantize-attention"
    approximates: ClassVar[bool] = True

    format: str = "int8"
    scores: bool = True
    mix: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        form = get_format(self.format)
        if form.block or form.bits != 8:
            raise ValueError(f"attention is multiplied in int8, fp8_e4m3 or fp8_e5m2, not in {form}")

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Look at every product of the graph and of its regions."""
        products = [node for node in graph.walk() if node.op == "dot_general"]
        early = parameters_of(graph, ctx.params) if products and ctx.params else {}
        for dot in products:
            if not dot.alive or dot.is_dead or not _is_plain(dot):
                continue
            found = find(dot)
            if isinstance(found, str):
                ctx.miss(_RULES["mix"], dot, found)
            elif found is not None:
                self._quantize(found, early, ctx)
        if not any(site.by == self.name for site in ctx.sites):
            ctx.note("no attention is found: no product reads a softmax of another's result")

    def _quantize(self, found: Found, early: Sources, ctx: PassContext) -> None:
        """Put codes in both products of one attention."""
        scores = [node for node in _scores(found) if _is_plain(node)] if self.scores else []
        done = []
        for node in scores:
            if not any(value in early for value in node.operands) and ctx.fire(_RULES["scores"], node):
                _write(node, self.format, _RULES["scores"])
                done.append("scores")
        if (
            self.mix
            and found.dot.operands[1 - found.side] not in early
            and ctx.fire(_RULES["mix"], found.dot)
        ):
            _write(found.dot, self.format, _RULES["mix"])
            done.append("mix")
        if done:
            name = f"attention {found.dot.scope}".strip()
            number = sum(site.name.startswith(name) for site in ctx.sites) + 1
            name = f"{name}#{number}" if number > 1 else name
            what = f"{get_format(self.format).name}: {', '.join(done)}"
            ctx.sites.append(Site(name, found.dot.op, what, source=found.dot.source, by=self.name))


def _is_plain(dot: Node) -> bool:
    """Whether both operands are floats of known shapes, and there is something to sum over."""
    contracted = dot.params["dimension_numbers"][0][0]
    return bool(contracted) and all(
        v.is_static and 0 not in v.shape and jnp.issubdtype(v.dtype, jnp.floating) for v in dot.operands
    )


def _scores(found: Found) -> list[Node]:
    """The products of what depends on queries alone with what depends on keys alone, behind the scores."""
    products: list[Node] = []
    seen: set[Value] = set()
    queue: list[tuple[Value, Labels]] = [(found.scores, found.labels)]
    while queue and len(seen) < _MOST:
        value, labels = queue.pop()
        node = value.node
        if node is None or value in seen or None in labels:
            continue
        seen.add(value)
        operands = operand_labels(node, labels)
        if operands is None:
            continue
        if node.op == "dot_general":
            if sorted((q is None, k is None) for q, k in operands) == [(False, True), (True, False)]:
                products.append(node)
            continue
        queue += zip(node.operands, operands, strict=True)
    return products


@dataclass(frozen=True)
class Both:
    """A product whose operands are both quantised at each call.

    Attributes:
        dims: the dimension numbers.
        scheme: of the codes.
        result: the dtype of the result.
    """

    dims: Dims
    scheme: Scheme
    result: Any


def _write(dot: Node, form: str, rule: str) -> None:
    how = Both(dot.params["dimension_numbers"], Scheme(form, keep_nan=True), dot.result.dtype)
    write(rewrite(both, *dot.operands, how=how), dot, rule)
    erase_dead(dot)


def both(lhs: jax.Array, rhs: jax.Array, *, how: Both) -> jax.Array:
    """The product of two arrays in codes, each with a scale for everything that is summed up together."""
    codes, scales = [], []
    for side, x in enumerate((lhs, rhs)):
        scheme = replace(how.scheme, shared=how.dims[0][side])
        scale, _ = scale_of(x, scheme)
        codes.append(encode(x, scale, None, scheme))
        scales.append(in_result(scale, side, how.dims, (rhs, lhs)[side].ndim))
    kind = jnp.int32 if how.scheme.fmt.kind == "integer" else jnp.float32
    total = lax.dot_general(codes[0], codes[1], how.dims, preferred_element_type=kind)
    return (total.astype(jnp.float32) * scales[0] * scales[1]).astype(how.result)
