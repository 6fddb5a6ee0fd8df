"""The search for the best labels: messages, prices of what is limited, then the integer program."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lepton_jax.parallel.solver.dual import Dual
from lepton_jax.parallel.solver.greedy import Improver
from lepton_jax.parallel.solver.integer import solve_integer
from lepton_jax.parallel.solver.problem import Floats, Labels, Problem, Row

GAP: Final = 1e-3
_MOST_CELLS: Final = 400_000
_STEPS: Final = 8


@dataclass
class Search:
    """What is known of a problem so far.

    Attributes:
        labels: the cheapest choice within the limits; if none is known, the one that exceeds them least.
        value: what it costs; inf where it exceeds the limits.
        bound: no choice costs less.
        proven: whether the integer program or the bound has shown that it is the best to within the gap.
        finished: whether there was time for all that was to be tried.
    """

    labels: Labels
    value: float = np.inf
    bound: float = 0.0
    proven: bool = False
    finished: bool = False

    @property
    def gap(self) -> float:
        """How much less could be possible, as a part of the value."""
        return 1.0 - self.bound / self.value if np.isfinite(self.value) and self.value > 0 else 1.0


def search(
    problem: Problem, inner: Collection[int], starts: Sequence[Labels], seconds: float, gap: float = GAP
) -> Search:
    """The best labels that are found in time.

    Args:
        problem: what to choose.
        inner: variables of which no two have a pair cost.
        starts: choices to begin with, none of which need be within the limits.
        seconds: after which the best is taken.
        gap: relative, at which to stop.
    """
    end = time.monotonic() + seconds
    run = _Run(problem, inner, end, gap)
    for start in starts:
        run.offer(start)
    run.messages()
    if problem.rows and run.exceeded():
        run.prices()
    found = run.found
    if found.gap > gap and time.monotonic() < end:
        run.integer()
    found.proven = found.proven or found.gap <= gap
    found.finished = found.proven or time.monotonic() < end
    return found


class _Run:
    def __init__(self, problem: Problem, inner: Collection[int], end: float, gap: float) -> None:
        self.problem = problem
        self.end = end
        self.gap = gap
        self.improver = Improver(problem, inner)
        self.found = Search([0] * len(problem.costs))
        self.excess = np.inf
        self.dual: Dual | None = None
        self.price = 0.0
        self.free: Labels | None = None

    def left(self, part: float = 1.0) -> float:
        return max(self.end - time.monotonic(), 0.0) * part

    def offer(self, labels: Labels) -> None:
        """Note a choice and what improves it."""
        for each in (labels, self.improver.fitting(labels)):
            value, excess = self.problem.value(each), self.problem.excess(each)
            if excess <= 0 and value < self.found.value:
                self.found.labels, self.found.value, self.excess = list(each), value, excess
            elif excess > 0 and not np.isfinite(self.found.value) and excess < self.excess:
                self.found.labels, self.excess = list(each), excess

    def messages(self) -> None:
        """A bound without the limits, and the choice that it suggests."""
        best = self.improver.improved(self.found.labels)
        worst = self.problem.value(best)
        ceiling = 20.0 * worst if np.isfinite(worst) and worst > 0 else 1e6
        self.dual = Dual(self.problem, range(len(self.problem.costs)), ceiling)
        goal = self.found.value if np.isfinite(self.found.value) else worst
        end = time.monotonic() + self.left(0.4)
        stalled = 0
        while time.monotonic() < end:
            before = self.dual.bound, self.found.value
            self.dual.run(end - time.monotonic(), goal * (1 - self.gap), rounds=25)
            decoded = self.dual.decoded()
            self.free = self.improver.improved(decoded)
            self.offer(self.free)
            self.found.bound = max(self.found.bound, self.dual.bound)
            goal = min(goal, self.found.value)
            if self.found.gap <= self.gap:
                return
            moved = self.dual.bound - before[0] > 1e-3 * (goal - before[0]) or self.found.value < before[1]
            stalled = 0 if moved else stalled + 1
            if stalled > 1:
                return

    def exceeded(self) -> bool:
        """Whether the limits keep the cheapest choice out."""
        return self.free is not None and self.problem.excess(self.free) > 0

    def prices(self) -> None:
        """Raise the price of what is limited until the choices fit; each price gives a bound (Lagrange)."""
        assert self.dual is not None
        start = max(self.dual.bound, 1e-12)
        low, high, price = 0.0, np.inf, 0.25 * start
        for _ in range(_STEPS):
            if self.left() <= 0 or self.found.gap <= self.gap:
                return
            self.dual.charge(self.charges(price))
            self.dual.run(self.left(0.2), np.inf, rounds=40)
            constant = price * len(self.problem.rows)
            bound = self.dual.bound - constant
            if bound > self.found.bound:
                self.found.bound, self.price = bound, price
            decoded = self.dual.decoded()
            self.offer(decoded)
            if self.problem.excess(decoded) > 0:
                low = price
            else:
                high = price
            price = 0.5 * (low + high) if np.isfinite(high) else price * 4.0
        self.dual.charge(self.charges(self.price))
        self.dual.run(self.left(0.2), np.inf, rounds=40)

    def integer(self) -> None:
        """Solve what the bound has left open exactly, if it is small enough."""
        assert self.dual is not None
        room = self.found.value - (self.dual.bound - self.price * len(self.problem.rows))
        kept = [np.arange(len(costs)) for costs in self.problem.costs]
        if np.isfinite(room):
            kept = [np.flatnonzero(extra <= room * (1 + 1e-9) + 1e-15) for extra in self.dual.excess()]
            kept = [np.array([self.found.labels[i]]) if not len(k) else k for i, k in enumerate(kept)]
        small = _restricted(self.problem, kept)
        if sum(table.size for table in small.pairs.values()) > _MOST_CELLS:
            return
        result = solve_integer(small, self.left(), self.gap)
        if result.labels is not None:
            self.offer([int(k[label]) for k, label in zip(kept, result.labels, strict=True)])
        if result.status == "infeasible":
            self.found.bound = self.found.value  # nothing better is left
        else:
            self.found.bound = max(self.found.bound, min(result.bound, self.found.value))
        self.found.proven = result.status != "time limit"

    def charges(self, price: float) -> dict[int, Floats]:
        """What labels cost besides when all that a limit allows costs `price`."""
        found: dict[int, Floats] = {}
        for row in self.problem.rows:
            for i, needs in row.needs.items():
                found[i] = found.get(i, 0.0) + price / max(row.most, 1.0) * needs
        return found


def _restricted(problem: Problem, kept: Sequence[np.ndarray]) -> Problem:
    """The problem with these labels only."""
    small = Problem([costs[k] for costs, k in zip(problem.costs, kept, strict=True)], names=problem.names)
    for (i, j), table in problem.pairs.items():
        small.add(i, j, table[np.ix_(kept[i], kept[j])])
    small.rows = [
        Row({i: n[kept[i]] for i, n in row.needs.items()}, row.most, row.what) for row in problem.rows
    ]
    return small
