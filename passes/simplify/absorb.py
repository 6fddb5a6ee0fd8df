"""Scales, shifts and low-rank updates that depend on parameters alone, taken into weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepton_jax.ir.graph import Graph
from lepton_jax.passes.simplify._absorb.after import absorb_after
from lepton_jax.passes.simplify._absorb.before import absorb_before
from lepton_jax.passes.simplify._absorb.known import Known
from lepton_jax.passes.simplify._absorb.product import product_of
from lepton_jax.passes.simplify._absorb.sums import absorb_sum
from lepton_jax.rewrite import Pass, PassContext


@dataclass(frozen=True)
class Absorb(Pass):
    """Takes into weights what scales, shifts or updates them, where it depends on parameters alone.

    Before:
        %1 = conv %x %w;  %2 = sub %1 %mean;  %3 = mul %2 %s;  %4 = add %3 %beta
    After:
        %v = mul %w %s;  %b = (beta - mean * s)            (of parameters alone: `prepare`)
        %1 = conv %x %v;  %4 = add %1 %b

    - `scale-and-shift-into-weight`: what follows a dot or a convolution along its output channels, batch
      norm at inference first of all, through reshapes and transposes: (x @ W + b) * s + t → x @ (W * s) +
      (b * s + t). Several biases become one.
    - `scale-and-shift-into-readers`: what stands in front, where every reader can take it: (x * s) @ W →
      x @ (s * W), the gains of norms; (x + b) @ W → x @ W + b @ W where a bias follows, and for
      convolutions where nothing is padded.
    - `sum-of-products-into-weight`: x @ W + (x @ A) @ B → x @ (W + A @ B), low-rank adapters.

    It pays where the parameters are prepared once: nothing happens unless they are known. A weight that is
    read elsewhere too stays, since it would be kept twice, and so does one that is decoded from something
    smaller. Intermediate values that others read, activation functions and residual sums end what is
    taken in. It runs before `quantize`: "default,absorb,quantize". Level `reassociate`.
    """

    name: ClassVar[str] = "absorb"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """What stands in front of products first, last to first, then sums, then what follows them."""
        if not ctx.params or not ctx.allows("reassociate"):
            return
        known = Known.of(graph, ctx)
        for node in reversed(graph.nodes()):
            if node.alive:
                absorb_before(node, known)
        _after(graph, known)
        merged = [node.alive and absorb_sum(node, known) for node in reversed(graph.nodes())]
        if any(merged):
            _after(graph, known)


def _after(graph: Graph, known: Known) -> None:
    for node in graph.nodes():
        product = product_of(node, known) if node.alive else None
        if product is not None:
            absorb_after(product, known)
