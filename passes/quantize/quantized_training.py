"""Training in low precision: forward and backward products on codes of eight bits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Final

import jax.numpy as jnp

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.numerics.formats import get_format
from lepton_jax.passes.quantize._quantized_training.products import Formats, product
from lepton_jax.rewrite import Pass, PassContext, UsageError, rewrite
from lepton_jax.rewrite.replacement import write

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

    Everything else, weights and optimisers among it, stays as it is. Scales are those of the numbers at hand.
    A function that is differentiated afterwards gets products whose derivatives are products on codes; in a
    step that holds its gradients, what `jax.grad` made is told from the rest by JAX's name stack. Reverse
    mode only. Approximate; it runs when it is named. Put it last.

    Attributes:
        forward: the format of weights and activations: `fp8_e4m3`, `fp8_e5m2`, `int8`, ….
        backward: the format of gradients. Where one is of integers and the other of float8, the products of
            the backward pass are all in this one.
        scope: a regular expression: only where it is found in the scope (`jax.named_scope`s, Flax modules).
        skip: a regular expression: not where it is found in the scope.
        least: only products whose operands each have so many elements at least.

    Raises:
        UsageError: `scope` is found nowhere.
        ValueError: a format whose codes are not multiplied as they are.

    Source: Micikevicius et al. 2022, FP8 Formats for Deep Learning (arXiv 2209.05433): e4m3 forwards, e5m2
    backwards. For integers, Banner et al. 2018, Scalable Methods for 8-bit Training (arXiv 1805.11046).
    """

    name: ClassVar[str] = "quantized-training"
    approximates: ClassVar[bool] = True

    forward: str = "fp8_e4m3"
    backward: str = "fp8_e5m2"
    scope: str | None = None
    skip: str | None = None
    least: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        for name in (self.forward, self.backward):
            form = get_format(name)
            if form.block or (form.kind != "integer" and form.dtype.kind in "iu"):
                raise ValueError(f"codes of {form} cannot be multiplied as they are: take int8 or float8")
        for pattern in (self.scope, self.skip):
            re.compile(pattern or "")

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Put products on codes in place of products in floats."""
        found = [node for inner in graph.graphs() for node in inner if node.op == "dot_general"]
        if self.scope is not None and found and not any(re.search(self.scope, node.scope) for node in found):
            scopes = ", ".join(sorted({node.scope or "(none)" for node in found})[:8])
            raise UsageError(
                f"scope={self.scope!r} matches the scope of no product; the scopes are: {scopes}"
            )
        count = 0
        for node in found:
            reason = self._why_not(node)
            if reason is not None:
                ctx.miss(_RULE, node, reason)
            elif ctx.fire(_RULE, node):
                self._write(node)
                count += 1
        if found:
            formats = f"{self.forward} forwards, {self.backward} backwards"
            ctx.note(f"{count} of {len(found)} products run on codes, {formats}")

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

    def _write(self, node: Node) -> None:
        left, right = (self.backward if _is_gradient(node, v) else self.forward for v in node.operands)
        if get_format(left).kind != get_format(right).kind:
            left = right = self.backward
        formats = Formats(left, right, self.backward)
        dims, dtype = node.params["dimension_numbers"], node.results[0].dtype
        write(rewrite(product, *node.operands, dims=dims, formats=formats, result=dtype), node, _RULE)
        if node.graph is not None:
            node.graph.erase(node)


def _is_gradient(node: Node, value: Value) -> bool:
    """Whether an operand of a product in a gradient is a gradient itself."""
    if _DERIVATIVE not in node.scope:
        return False
    while value.node is not None and value.op in _MOVES:
        value = value.node.operands[0]
    return value.node is not None and _DERIVATIVE in value.node.scope
