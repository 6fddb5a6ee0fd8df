"""Convolutions in the form that the target is fast at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.graph import Graph
from lepton_jax.passes.lower._convolution import cascades, depthwise, products, separable, spectral
from lepton_jax.rewrite import PassContext, Rule, RulePass, run_rules

RULES: Final[tuple[Rule, ...]] = (
    *separable.RULES,
    *products.RULES,
    *depthwise.RULES,
    *spectral.RULES,
)


@dataclass(frozen=True)
class Convolution(RulePass):
    """Writes convolutions that XLA's library for CPUs is slow at in another form.

    Before:
        %2 = conv_general_dilated[feature_group_count=64 ...] %x %w
    After:
        %2 = pad %x 0.0;  %3 = slice %2;  %4 = slice %w;  %5 = mul %3 %4;  ...;  %6 = add %5 ...

    Depthwise ones as sums of shifted products, with the gradients of their kernels; those of one tap as
    matrix products; long kernels through Fourier space; constant kernels that are outer products as two
    convolutions. These on CPU only: on GPU and TPU the libraries are good. On all targets, filters one after
    another and sums of filters become one filter where that is less work. All at level `reassociate`.
    Integer convolutions stay.
    """

    name: ClassVar[str] = "convolution"
    rules: ClassVar[Sequence[Rule]] = (*cascades.RULES, *RULES)

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """First those that make one convolution of two: afterwards they may look otherwise."""
        since = ctx.settled.get(self, 0)
        run_rules(graph, cascades.RULES, ctx, level=self.level, since=since)
        run_rules(graph, RULES, ctx, level=self.level, since=since)
