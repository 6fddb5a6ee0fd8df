"""Equality saturation."""

from __future__ import annotations

import importlib
import importlib.util
import time
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.passes.simplify._saturate.emission import Writer
from lepton_jax.passes.simplify._saturate.islands import Island, islands
from lepton_jax.passes.simplify._saturate.search import Plan, Search
from lepton_jax.rewrite import Level, Pass, PassContext, PipelineError, erase_dead
from lepton_jax.rewrite.profit import trips_of

_RULE: Final = "equality-saturation"
_MOST_ROUNDS: Final = 4
"""So often at the most is what an early end left searched again."""


@dataclass(frozen=True)
class Saturate(Pass):
    """Searches all programs that the rules of algebra make of a part, and takes the cheapest.

    Before:
        %3 = dot_general %A %B;  %4 = dot_general %3 %C;  %5 = dot_general %A %D;  %6 = dot_general %5 %C
        %7 = add %4 %6
    After:
        %3 = add %B %D;  %4 = dot_general %A %3;  %5 = dot_general %4 %C

    Rules that fire one by one, each where it pays, miss what pays only together: a sum multiplied out
    so that its products can be shared, a transpose taken out so that two products are one. Here all
    rules (products associate and distribute, transposes, numbers and diagonals move) run on an e-graph
    of egglog, which keeps every form, until none finds anything new; then an integer program picks the
    forms of all results together that take the target the least time, terms that are shared counted
    once, and in a loop what is the same on every iteration once for the loop. The graph changes only
    where that is less than nine tenths of the time.

    Parts are connected products of matrices with at most one contraction, sums, differences, transposes,
    multiplication by numbers and vectors, of one dtype and precision, without anything else in
    between; 40 operations at the most. Level `reassociate`. It is not in `default`: it needs the
    package egglog, and where sums are multiplied out whose terms nearly cancel, digits are lost.

    Attributes:
        nodes: the most operations in all e-graphs of a program together, a tenth of it in a single one.
        seconds: the most time for a program, as far as single steps can be stopped, half of what is left
            for a single e-graph. Where a limit is reached, the best form found so far is taken, and
            the report says so.
        level: a tighter limit on the rules' level than the run's.
    """

    name: ClassVar[str] = "saturate"

    nodes: int = 10_000
    seconds: float = 5.0
    level: Level | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            PipelineError: egglog is not installed, or a limit is not positive.
        """
        super().__post_init__()
        if importlib.util.find_spec("egglog") is None:
            raise PipelineError(
                "equality saturation needs the package egglog: pip install 'lepton-jax[saturate]'"
            )
        if self.nodes < 1 or not self.seconds > 0:
            raise PipelineError("the limits nodes and seconds must be positive")

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Saturate the islands of the graph and its regions, those that take the longest first."""
        if not ctx.allows("reassociate", self.level):
            return
        found = _islands(graph, ctx)
        if not found:
            return
        for name in ("egglog.bindings", "scipy.optimize"):  # before the clock starts
            importlib.import_module(name)
        search = Search(ctx, self.nodes, time.perf_counter() + self.seconds)
        for _ in range(_MOST_ROUNDS):
            if not _improve(found, search, ctx):
                return
            found = _islands(graph, ctx)


def _islands(graph: Graph, ctx: PassContext) -> list[Island]:
    """All islands, those that take the longest first."""
    found = [island for region in graph.graphs() for island in islands(region, ctx)]
    return sorted(found, key=lambda island: -_seconds(island, ctx))


def _improve(found: list[Island], search: Search, ctx: PassContext) -> bool:
    """Rewrite the islands where it pays.

    Returns:
        Whether one changed whose search had ended early, so that another search may find more.
    """
    moved: dict[Value, Value] = {}
    again = False
    for island in found:
        if search.is_over():
            ctx.miss(_RULE, island.nodes[0], "not looked at: a limit was reached before")
            ctx.note("some parts were not looked at: a limit was reached before")
            continue
        plan = search.plan(island)
        if plan.stopped is not None:
            ctx.miss(_RULE, island.nodes[0], f"the search ended early: {plan.stopped}")
            ctx.note(f"the search ended early: {plan.stopped}")
        if plan.pays and ctx.fire(_RULE, island.nodes[0], plan.before - plan.choice.seconds):
            _write(island, plan, moved)
            again = again or plan.stopped is not None
    return again


def _seconds(island: Island, ctx: PassContext) -> float:
    return trips_of(island.nodes[0]) * sum(ctx.seconds(node_cost(node)) for node in island.nodes)


def _write(island: Island, plan: Plan, moved: dict[Value, Value]) -> None:
    """Replace an island's outputs, in program order: each needs only what stands before it."""
    writer = Writer(island, plan.choice, plan.shapes, moved, _RULE)
    for (value, _), number in zip(island.outputs, plan.roots, strict=True):
        if value.node is None or not value.node.alive:
            continue  # only another island read it, and does no longer
        moved[value] = writer.output(number, value, value.node)
        value.replace_uses(moved[value])
    for node in reversed(island.nodes):
        erase_dead(node)
