"""The best form of an island, within what is left of the limits."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from lepton_jax.passes.simplify._saturate.egraph import program, saturate
from lepton_jax.passes.simplify._saturate.extraction import Choice, cheapest, cheapest_trees
from lepton_jax.passes.simplify._saturate.islands import Island, leaf_shape
from lepton_jax.passes.simplify._saturate.pricing import Pricing
from lepton_jax.rewrite import PassContext
from lepton_jax.rewrite.profit import WORTH, is_fixed, trips_of


@dataclass(frozen=True)
class Plan:
    """How to compute an island.

    Attributes:
        choice: one way for each class of its e-graph that is needed.
        shapes: the rows and columns of the classes.
        roots: the classes of its outputs.
        before: the seconds that the program's own form takes.
        stopped: which limit was reached, or None.
    """

    choice: Choice
    shapes: list[tuple[int, int]]
    roots: tuple[int, ...]
    before: float
    stopped: str | None

    @property
    def pays(self) -> bool:
        """Whether it saves enough to change the program."""
        return self.choice.seconds < WORTH * self.before


class Search:
    """Plans islands; those that are alike are planned once.

    Args:
        nodes: the most operations in all e-graphs together; a single one may have a tenth.
        deadline: when to stop, as `time.perf_counter` tells it; an island may have half of what is left.
    """

    def __init__(self, ctx: PassContext, nodes: int, deadline: float) -> None:
        self.ctx = ctx
        self.most = max(nodes // 10, 1)
        self.left = nodes
        self.deadline = deadline
        self.known: dict[Any, Plan] = {}

    def is_over(self) -> bool:
        """Whether a limit is reached."""
        return self.left <= 0 or time.perf_counter() > self.deadline

    def plan(self, island: Island) -> Plan:
        """The best form of an island that is found."""
        frame, text = island.frame, program(island)
        trips = trips_of(island.nodes[0])
        shapes = tuple(leaf_shape(value, frame) for value in island.leaves)
        fixed = tuple(trips > 1 and is_fixed(value) for value in island.leaves)
        key = (text, shapes, fixed, trips, frame.batch, frame.dtype)
        known = self.known.get(key)
        if known is None:
            batch = math.prod(frame.batch)
            pricing = Pricing(shapes, fixed, trips, batch, frame.dtype, self.ctx)
            known = self.known[key] = self._best(text, pricing)
        return known

    def _best(self, text: str, pricing: Pricing) -> Plan:
        now = time.perf_counter()
        deadline = now + (self.deadline - now) / 2
        saturated = saturate(text, min(self.most, self.left), deadline)
        self.left -= saturated.after.size
        ways, shapes = pricing.variants(saturated.before)
        before = cheapest_trees(ways, saturated.before.roots).seconds
        roots = saturated.after.roots
        ways, shapes = pricing.variants(saturated.after)
        trees = cheapest_trees(ways, roots)
        best = cheapest(ways, roots, WORTH * min(trees.seconds, before), deadline)
        stopped = saturated.stopped
        if best is None:
            return Plan(trees, shapes, roots, before, stopped or "the time is over")
        choice = min(best, trees, key=lambda choice: choice.seconds)
        return Plan(choice, shapes, roots, before, stopped or best.stopped)
