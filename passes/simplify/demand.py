"""Demand: only what is read is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.graph import Graph
from lepton_jax.passes.simplify._demand import convolution_sums, diagonals, last, picks, sums
from lepton_jax.passes.simplify._demand.sinking import sink
from lepton_jax.rewrite import PassContext, Rule, RulePass, run_rules

RULES: Final[tuple[Rule, ...]] = (
    *diagonals.RULES,
    *sums.RULES,
    *convolution_sums.RULES,
    *picks.RULES,
)

_MOST_ROUNDS: Final = 8


@dataclass(frozen=True)
class Demand(RulePass):
    """Moves what reads a part of an array, or sums it up, to what the array is made of.

    Before:
        %2 = dot_general[dimension_numbers=(((1,),(0,)),((),()))] %a %b
        %3 = slice[limit_indices=(8,512) start_indices=(0,0)] %2
    After:
        %2 = slice[limit_indices=(8,512) start_indices=(0,0)] %a
        %3 = dot_general[dimension_numbers=(((1,),(0,)),((),()))] %2 %b

    Slices, indices and gathers of rows go through elementwise operations, reductions, products and
    convolutions; a diagonal, a trace or a sum of a product needs no product; of a scan whose last
    row alone is read only that row is kept. Nothing changes where anything else reads the whole, or
    where the cost model sees no gain. Level `reassociate`, the last row of a scan `exact`.
    """

    name: ClassVar[str] = "demand"
    rules: ClassVar[Sequence[Rule]] = RULES

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Loops first, then reads, then sums, again while that changes anything."""
        for _ in range(_MOST_ROUNDS):
            version = graph.total_version()
            for inner in graph.graphs():
                last.keep_last_rows(inner, ctx)
                if ctx.allows("reassociate", self.level):
                    sink(inner, ctx)
            run_rules(graph, self.rules, ctx, level=self.level)
            if graph.total_version() == version:
                return
