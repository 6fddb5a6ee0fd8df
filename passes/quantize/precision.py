"""Automatic mixed precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lepton_jax.ir.binding import binding_time
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.passes._weights.selecting import expression
from lepton_jax.passes.quantize._precision.machine import why_not
from lepton_jax.passes.quantize._precision.paint import Paint, paint
from lepton_jax.passes.quantize._precision.sites import Choice, is_float32, products, why_keep
from lepton_jax.passes.quantize._precision.write import CHAIN, PRODUCT, write
from lepton_jax.rewrite import Pass, PassContext
from lepton_jax.rewrite.errors import UsageError

NAMES = {"bf16": "bfloat16", "f16": "float16", "fp8": "float8_e4m3fn"}


@dataclass(frozen=True)
class Precision(Pass):
    """Runs products of matrices and convolutions in low precision, and leaves what is delicate in float32.

    Before:
        %2: f32 = dot_general %x %w;  %3: f32 = max %2 0.0;  %4: f32 = dot_general %3 %v;  %5: f32 = exp %4
    After:
        %6: bf16 = convert %x;  %7: bf16 = convert %w;  %8: bf16 = convert %v
        %2: bf16 = dot_general %6 %7;  %3: bf16 = max %2 0.0;  %4: f32 = dot_general %3 %8;  %5: f32 = exp %4

    Products of float32 arrays get operands of the low dtype and add up in float32. Their result is float32,
    unless all who read it are low themselves: what stands between two products (adding a bias, relu, a
    transpose, pooling by the maximum) runs in low precision too, so that less memory is read and written.
    Exponentials, logarithms, powers, divisions, roots, sums and all that is made of them (softmax, norms,
    losses, optimisers) compute in float32 on float32 numbers. Each value is converted once for all who read
    it. Integers, complex numbers, float64, what is low already, and products for which the program asks a
    precision are left alone. Approximate; it runs when it is named.

    A product is converted only where the target is faster at it by the target's figures; the report says
    how many were and why the others were not.

    Attributes:
        dtype: `bf16`; `f16` (only where the hardware has it, needs `loss_scaled` in training); `fp8`: forward
            products of matrices in float8_e4m3fn, scaled per tensor by the greatest magnitude at hand, all
            others in bfloat16.
        scope: a regular expression; only products in whose scope (`jax.named_scope`s, Flax module paths) it
            is found.
        keep: a regular expression; products in whose scope it is found stay in float32.
        force: convert whether or not it is faster.

    Raises:
        ValueError: `scope` or `keep` is no regular expression.
    """

    name: ClassVar[str] = "precision"
    approximates: ClassVar[bool] = True
    dtype: Literal["bf16", "f16", "fp8"] = "bf16"
    scope: str | None = None
    keep: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("scope", "keep"):
            expression(key, getattr(self, key))

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Choose the products, find what follows them in each graph, and write both."""
        sites = list(products(graph))
        choice = self._choice(graph, ctx)
        _check_selectors(choice, sites)
        wide = [node for node in sites if is_float32(node)]
        reasons = {node: why_keep(node, choice, ctx) for node in wide}
        chosen = {node for node in wide if reasons[node] is None and ctx.fire(PRODUCT, node)}
        for node, reason in reasons.items():
            if reason is not None:
                ctx.miss(PRODUCT, node, reason)
        self._tell(len(chosen), [reason for reason in reasons.values() if reason is not None], ctx)
        native = ctx.rates.platform != "cpu"
        for inner in dict.fromkeys(node.graph for node in wide if node in chosen):
            assert inner is not None
            found = _allowed(paint(inner, chosen, choice.low, arithmetic=native), ctx)
            write(inner, found, choice.low, self.dtype == "fp8", native)

    def _choice(self, graph: Graph, ctx: PassContext) -> Choice:
        return Choice(
            dtype=self.dtype,
            scope=expression("scope", self.scope),
            keep=expression("keep", self.keep),
            force=self.force,
            refusal=why_not(self.dtype, ctx.rates),
            early=binding_time(graph, ctx.params) if ctx.params else frozenset(),
        )

    def _tell(self, count: int, reasons: Sequence[str], ctx: PassContext) -> None:
        """Say in the report what was converted, and what was not and why."""
        if not count and not reasons:
            return
        text = f"{count} of {count + len(reasons)} float32 products run in {NAMES[self.dtype]}"
        general = Counter("no faster by estimate" if r.startswith("takes ") else r for r in reasons)
        left = "; ".join(f"{number} left: {reason}" for reason, number in general.items())
        ctx.note(f"{text}; {left}" if left else text)


def _check_selectors(choice: Choice, sites: Sequence[Node]) -> None:
    """Refuse selectors that select nothing.

    Raises:
        UsageError: a selector is found in the scope of no product, though there are products.
    """
    for key, pattern in (("scope", choice.scope), ("keep", choice.keep)):
        if pattern is None or not sites or any(pattern.search(node.scope) for node in sites):
            continue
        scopes = sorted({node.scope or "(none)" for node in sites})
        shown = ", ".join(scopes[:8]) + (", …" if len(scopes) > 8 else "")
        raise UsageError(
            f"{key}={pattern.pattern!r} matches the scope of no product; the scopes are: {shown}"
        )


def _allowed(found: Paint, ctx: PassContext) -> Paint:
    """Ask for each chain; those refused stay in float32, as a whole."""
    for first, component in list(found.components()):
        if component & found.chain and not ctx.fire(CHAIN, first):
            found = found.without(component)
    return found
