"""Fourier transforms of real numbers, and those that undo one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.graph import Graph
from lepton_jax.passes.simplify._fourier import filters, halves, inverses
from lepton_jax.rewrite import PassContext, Rule, RulePass, run_rules

RULES: Final[tuple[Rule, ...]] = (*inverses.RULES, *halves.READS, *filters.RULES, *halves.WHOLE)


@dataclass(frozen=True)
class Fourier(RulePass):
    """Makes use of what is known of Fourier transforms.

    Before:
        %1 = convert_element_type[new_dtype=complex64] %x
        %2 = fft[fft_lengths=(16,) fft_type=FFT] %1;  %3 = slice[limit_indices=(4,9)] %2
    After:
        %3 = fft[fft_lengths=(16,) fft_type=RFFT] %x

    Transforms that undo one another vanish; those of real numbers are made by the real transform, of
    which half is read, or mirrored. All at level `reassociate`.
    """

    name: ClassVar[str] = "fourier"
    rules: ClassVar[Sequence[Rule]] = RULES

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Rules that look at what is read of a transform first: mirrored ones look otherwise."""
        since = ctx.settled.get(self, 0)
        run_rules(graph, RULES[: -len(halves.WHOLE)], ctx, level=self.level, since=since)
        run_rules(graph, halves.WHOLE, ctx, level=self.level, since=since)
