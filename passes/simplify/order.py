"""Order statistics: choosing instead of sorting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.graph import Graph
from lepton_jax.passes.simplify._order import choices, permutations, reads, running, selection, sorts
from lepton_jax.rewrite import PassContext, Rule, RulePass

RULES: Final[tuple[Rule, ...]] = (
    *reads.RULES,
    *running.RULES,
    *choices.RULES,
    *permutations.RULES,
)


@dataclass(frozen=True)
class Order(RulePass):
    """Chooses the entries of a sort that are read, and folds instead of running along.

    Before:
        %1 = sort[dimension=0 is_stable=True num_keys=1] %x
        %2 = slice[limit_indices=(8,) start_indices=(0,)] %1
    After:
        %1 = neg %x;  _, %2 = top_k[k=8] %1;  %3 = gather %x %2

    The first and last entries of sorts and argsorts, medians and quantiles, one entry of a running sum, the
    largest entry of a softmax, the best of the best. Level `reassociate`: see the rules for NaN and zeros.
    """

    name: ClassVar[str] = "order"
    rules: ClassVar[Sequence[Rule]] = RULES

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Rules first: they make reads of sorts plain."""
        super().run(graph, ctx)
        for inner in graph.graphs():
            selection.select_entries(inner, ctx, self.level, far=True)
            sorts.choose_entries(inner, ctx, self.level)
            selection.select_entries(inner, ctx, self.level)
