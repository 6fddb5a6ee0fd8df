"""Small products made together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.graph import Graph
from lepton_jax.passes.fuse._batching import choice, repeated, sliced, stacked
from lepton_jax.rewrite import PassContext, Rule, RulePass

RULES: Final[tuple[Rule, ...]] = (*stacked.RULES, *repeated.RULES)


@dataclass(frozen=True)
class Batching(RulePass):
    """Makes many small products one, and does not repeat operands for it.

    Before:
        %2 = slice %x;  %3 = slice %w;  %4 = dot_general %2 %3;  %5 = tanh %4;  ...;  %50 = stack %5 %9 ...
    After:
        %2 = dot_general[dimension_numbers=(((2,),(1,)),((0,),(0,)))] %x %w;  %3 = tanh %2

    List comprehensions over heads, experts or layers whose weights lie in one array; batched products
    with the same weights for every batch; grouped-query attention; products with parts of one array
    (`sliced-products`). Weights that lie apart are not put together at run time. All at level `reassociate`,
    not on TPU.
    """

    name: ClassVar[str] = "batching"
    rules: ClassVar[Sequence[Rule]] = RULES

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Rules, then products with parts of one array, then choices by one number."""
        super().run(graph, ctx)
        for inner in list(graph.graphs()):
            sliced.merge_products(inner, ctx, self.level)
            choice.choose_by_number(inner, ctx, self.level)
