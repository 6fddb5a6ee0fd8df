"""Training in low precision: forward and backward products on codes of eight bits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import jax.numpy as jnp

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.numerics.formats import get_format
from lepton_jax.passes._weights.lifting import depth, found_by_calibration, in_branch, loop_lengths
from lepton_jax.passes._weights.selecting import expression
from lepton_jax.passes._weights.uses import unused_name
from lepton_jax.passes.quantize._quantized_training.delayed import (
    KIND,
    STARTING,
    Beginning,
    Delay,
    delayed_product,
)
from lepton_jax.passes.quantize._quantized_training.products import Formats, Rounding, product
from lepton_jax.rewrite import Pass, PassContext, UsageError, Watch, rewrite
from lepton_jax.rewrite.replacement import Rewrite, write

_RULE: Final = "quantized-product"

_DERIVATIVE: Final = "transpose("

_MOVES: Final = frozenset(
    {"reshape", "transpose", "squeeze", "broadcast_in_dim", "convert_element_type", "copy"}
)


@dataclass(frozen=True)
class QuantizedTraining(Pass):
    """Products of a training step on codes of eight bits, those of its gradients too.

    Before:
        %2: f32 = dot_general %x %w
    After:
        %s = max |%x| / 448;  %c: f8e4m3 = %x / %s;  %t = max |%w| / 448;  %d: f8e4m3 = %w / %t
        %a: f32 = dot_general %c %d;  %2 = %a · %s · %t

    Everything else, weights and optimisers among it, stays as it is. A function that is differentiated
    afterwards gets products whose derivatives are products on codes; in a step that holds its gradients, what
    `jax.grad` made is told from the rest by JAX's name stack. Reverse mode only. Approximate; it runs when it
    is named. Put it last.

    Attributes:
        forward: the format of weights and activations: `fp8_e4m3`, `fp8_e5m2`, `int8`, ….
        backward: the format of gradients. Where one is of integers and the other of float8, the products of
            the backward pass are all in this one.
        scope: a regular expression: only where it is found in the scope (`jax.named_scope`s, Flax modules).
        skip: a regular expression: not where it is found in the scope.
        least: only products whose operands each have so many elements at least.
        scaling: `dynamic`: scales are those of the numbers at hand; `delayed`: of the steps before, which
            are a state that you carry, see `lepton_jax.delayed_scaling`. Products in branches are dynamic.
        history: of how many steps a delayed scale is made.
        margin: so many powers of two a delayed scale leaves free above the largest magnitude.
        axes: mapped axes (of `shard_map` or `pmap`) over which magnitudes are compared, separated by spaces;
            those that JAX knows of, where `shard_map` checks, need no mention.
        rounding: of gradients: to `nearest`, or `stochastic`: at random, such that the mean is kept.

    Raises:
        UsageError: `scope` is found nowhere; delayed scaling without its state, or of a step that holds its
            gradients.
        ValueError: a format whose codes are not multiplied as they are, or no history.

    Source: Micikevicius et al. 2022, FP8 Formats for Deep Learning (arXiv 2209.05433): e4m3 forwards, e5m2
    backwards, delayed scaling as in NVIDIA's Transformer Engine. For integers, Banner et al. 2018, Scalable
    Methods for 8-bit Training (arXiv 1805.11046). Stochastic rounding: Gupta et al. 2015 (arXiv 1502.02551).
    """

    name: ClassVar[str] = "quantized-training"
    approximates: ClassVar[bool] = True

    forward: str = "fp8_e4m3"
    backward: str = "fp8_e5m2"
    scope: str | None = None
    skip: str | None = None
    least: int = 0
    scaling: Literal["dynamic", "delayed"] = "dynamic"
    history: int = 1024
    margin: int = 0
    axes: str = ""
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        for name in (self.forward, self.backward):
            form = get_format(name)
            if form.block or (form.kind != "integer" and form.dtype.kind in "iu"):
                raise ValueError(f"codes of {form} cannot be multiplied as they are: take int8 or float8")
        expression("scope", self.scope)
        expression("skip", self.skip)
        if self.history < 1:
            raise ValueError("history is a number of steps: 1 or more")
        if self.axes and self.scaling != "delayed":
            raise ValueError("axes are for the magnitudes of scaling=delayed")

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Put products on codes in place of products in floats."""
        found = [node for inner in graph.graphs() for node in inner if node.op == "dot_general"]
        if self.scope is not None and found and not any(re.search(self.scope, node.scope) for node in found):
            scopes = ", ".join(sorted({node.scope or "(none)" for node in found})[:8])
            raise UsageError(
                f"scope={self.scope!r} matches the scope of no product; the scopes are: {scopes}"
            )
        reasons = [self._why_not(node) for node in found]
        states = self._states([n for n, reason in zip(found, reasons, strict=True) if reason is None], ctx)
        starting = any(kind == STARTING for _, kind in ctx.calibration)
        count = 0
        for node, reason in zip(found, reasons, strict=True):
            if reason is not None:
                ctx.miss(_RULE, node, reason)
            elif ctx.fire(_RULE, node):
                self._write(node, states.get(node, []), starting)
                count += 1
        if found:
            formats = f"{self.forward} forwards, {self.backward} backwards"
            scales = f"; {len(states)} with delayed scales" if self.scaling == "delayed" else ""
            ctx.note(f"{count} of {len(found)} products run on codes, {formats}{scales}")

    def _states(self, nodes: list[Node], ctx: PassContext) -> dict[Node, list[Value]]:
        """The state of each product that has one, as values there.

        Raises:
            UsageError: there is none, or the program holds gradients.
        """
        if self.scaling != "delayed":
            return {}
        if any(_DERIVATIVE in node.scope for node in nodes):
            raise UsageError(
                "scaling=delayed is for functions that are differentiated afterwards, and this one holds "
                "gradients of its products: rewrite the loss, and differentiate that"
            )
        found: dict[Node, list[Value]] = {}
        taken: set[str] = set()
        for node in nodes:
            assert node.graph is not None
            reason = "it is in a branch" if in_branch(node.graph) else depth(node.graph)
            if isinstance(reason, str):
                ctx.miss(_RULE, node, f"its scale is dynamic: {reason}")
                continue
            name = unused_name(node.scope or "product", taken)
            taken.add(name)
            if ctx.watches is not None:
                beginning = Beginning(loop_lengths(node.graph), self.history)
                ctx.watches.append(Watch(name, KIND, beginning, None, 0, len(beginning.lengths)))
                continue
            kind = STARTING if (name, STARTING) in ctx.calibration else KIND
            found[node] = found_by_calibration(name, kind, node.graph, ctx)
            if not found[node]:
                raise UsageError(
                    f"there is no state of the product {name}: lepton.delayed_scaling(function, *sample) "
                    "makes one, for the same function and pipeline"
                )
        return found

    def _why_not(self, node: Node) -> str | None:
        """Why a product stays in floats, or None."""
        if any(v.dtype is None or not jnp.issubdtype(v.dtype, jnp.floating) for v in node.operands):
            return "it is no product of floats"
        if any(v.dtype.itemsize < 2 for v in node.operands) or node.results[0].dtype.itemsize > 4:
            return "it has another precision than float32 or its halves"
        if not all(v.is_static for v in node.operands):
            return "its shape is not known"
        if not node.params["dimension_numbers"][0][0]:
            return "an outer product has nothing to save"
        if self.scope is not None and not re.search(self.scope, node.scope):
            return f"its scope {node.scope!r} has no {self.scope!r}"
        if self.skip is not None and re.search(self.skip, node.scope):
            return f"its scope {node.scope!r} has {self.skip!r}"
        if min(math.prod(v.shape) for v in node.operands) < self.least:
            return f"an operand has fewer than {self.least} elements"
        return None

    def _write(self, node: Node, state: list[Value], starting: bool) -> None:
        gradient = Rounding(self.backward, self.rounding == "stochastic")
        left, right = (gradient if _is_gradient(node, v) else Rounding(self.forward) for v in node.operands)
        if gradient in (left, right):
            left, right = (each.in_format_with(gradient) for each in (left, right))
        made = self._rewritten(node, Formats(left, right, gradient), state, starting)
        write(made, node, _RULE)
        if node.graph is not None:
            node.graph.erase(node)

    def _rewritten(self, node: Node, formats: Formats, state: list[Value], starting: bool) -> Rewrite:
        dims, dtype = node.params["dimension_numbers"], node.results[0].dtype
        if not state:
            return rewrite(product, *node.operands, dims=dims, formats=formats, result=dtype)
        dtypes = (node.operands[0].dtype, node.operands[1].dtype)
        how = Delay(formats, self.history, self.margin, tuple(self.axes.split()), dtypes, starting)
        return rewrite(delayed_product, *node.operands, *state, dims=dims, how=how, result=dtype)


def _is_gradient(node: Node, value: Value) -> bool:
    """Whether an operand of a product in a gradient is a gradient itself."""
    if _DERIVATIVE not in node.scope:
        return False
    while value.node is not None and value.op in _MOVES:
        value = value.node.operands[0]
    return value.node is not None and _DERIVATIVE in value.node.scope
