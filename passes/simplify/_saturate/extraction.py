"""The cheapest way to compute some classes of an e-graph together.

What several terms share is computed once, so the cheapest term of each class by itself does not make the
cheapest program: `A @ B.T + (A @ B.T).T` has two products if each class takes its own best. The extractor
that all versions of egglog have counts trees. Choosing on the graph is an integer program: for each class at
most one way, a way only with a way for each class that it reads, the outputs at least one, and no circle.
HiGHS, which comes with SciPy, and SciPy with JAX, solves it exactly. Circles other than those of a class and
its transpose are rare, and are forbidden one by one as they turn up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from lepton_jax.passes.simplify._saturate.pricing import Variant

_MOST_CIRCLES: Final = 100
_GAP: Final = 0.01
"""A choice that takes this part longer than the best will do."""

_INFEASIBLE: Final = 2
"""The solver's way of saying so."""

Ways = Sequence[Sequence[Variant]]


class Choice(NamedTuple):
    """One way for each class that is needed.

    Attributes:
        ways: by class.
        seconds: what they take together.
        stopped: why it may not be the best, or None.
    """

    ways: dict[int, Variant]
    seconds: float
    stopped: str | None = None


NOTHING: Final = Choice({}, math.inf)
"""No choice within the limit."""


def cheapest_trees(ways: Ways, roots: Sequence[int]) -> Choice:
    """The cheapest term of each class, as if nothing was shared: a start that needs no solver."""
    best: dict[int, tuple[float, Variant]] = {}
    changed = True
    while changed:
        changed = False
        for number, own in enumerate(ways):
            for way in own:
                if not all(child in best for child in way.children):
                    continue
                seconds = way.seconds + sum(best[child][0] for child in way.children)
                if number not in best or seconds < best[number][0] * (1 - 1e-12) - 1e-15:
                    best[number], changed = (seconds, way), True
    return _needed({number: way for number, (_, way) in best.items()}, roots)


def cheapest(ways: Ways, roots: Sequence[int], limit: float, deadline: float) -> Choice | None:
    """The cheapest choice for all roots together, shared terms counted once.

    Args:
        ways: for each class the ways to compute it.
        roots: the classes wanted.
        limit: a choice that takes longer is of no use.
        deadline: when to stop, as `time.perf_counter` tells it.

    Returns:
        None where nothing was found in time; a choice that takes for ever where there is none.
    """
    kept = _pruned(ways, roots, limit)
    if any(not kept[root] for root in roots):
        return NOTHING
    problem = _Problem(kept, roots, limit)
    for _ in range(_MOST_CIRCLES):
        left = deadline - time.perf_counter()
        if left <= 0:
            return None
        solved = problem.solve(left)
        if solved is None:
            return None
        chosen, complete = solved
        if not chosen:
            return NOTHING
        circle = _circle(chosen, roots)
        if circle is None:
            choice = _needed(chosen, roots)
            return choice if complete else choice._replace(stopped="the time is over")
        problem.forbid(circle)
    return None


def _needed(ways: dict[int, Variant], roots: Sequence[int]) -> Choice:
    """The part of a choice that the roots need."""
    found: dict[int, Variant] = {}
    stack = list(roots)
    while stack:
        number = stack.pop()
        if number not in found:
            found[number] = ways[number]
            stack += ways[number].children
    return Choice(found, sum(way.seconds for way in found.values()))


def _pruned(ways: Ways, roots: Sequence[int], limit: float) -> list[list[Variant]]:
    """The ways that can be part of a choice within the limit: the dearest thing that one needs counts."""
    least = [np.inf] * len(ways)

    def seconds(way: Variant) -> float:
        return way.seconds + max((least[child] for child in way.children), default=0.0)

    changed = True
    while changed:
        changed = False
        for number, own in enumerate(ways):
            now = min(map(seconds, own), default=np.inf)
            if now < least[number]:
                least[number], changed = now, True
    needed = _reached(ways, roots, limit, seconds)
    return [
        [way for way in own if seconds(way) <= limit] if number in needed else []
        for number, own in enumerate(ways)
    ]


def _reached(ways: Ways, roots: Sequence[int], limit: float, seconds: Callable[[Variant], float]) -> set[int]:
    """The classes that ways within the limit lead to."""
    found: set[int] = set()
    stack = list(roots)
    while stack:
        number = stack.pop()
        if number not in found:
            found.add(number)
            stack += [child for way in ways[number] if seconds(way) <= limit for child in way.children]
    return found


def _circle(ways: dict[int, Variant], roots: Sequence[int]) -> list[int] | None:
    """Classes that need one another in a choice, in order; None where it is sound."""
    done: set[int] = set()

    def walk(number: int, path: list[int]) -> list[int] | None:
        if number in path:
            return path[path.index(number) :]
        if number in done:
            return None
        path.append(number)
        for child in ways[number].children:
            found = walk(child, path)
            if found is not None:
                return found
        path.pop()
        done.add(number)
        return None

    for root in roots:
        found = walk(root, [])
        if found is not None:
            return found
    return None


class _Problem:
    """The integer program: a variable for each way, in rows `least <= coefficients @ variables`."""

    def __init__(self, ways: Ways, roots: Sequence[int], limit: float) -> None:
        self.ways = [(number, way) for number, own in enumerate(ways) for way in own]
        self.places: list[list[int]] = [[] for _ in ways]
        for place, (number, _) in enumerate(self.ways):
            self.places[number].append(place)
        self.rows: list[dict[int, float]] = []
        self.least: list[float] = []
        for root in dict.fromkeys(roots):
            self.add(dict.fromkeys(self.places[root], 1.0), 1.0)
        self.readers: dict[tuple[int, int], list[int]] = {}
        for place, (number, way) in enumerate(self.ways):
            for child in dict.fromkeys(way.children):
                self.readers.setdefault((number, child), []).append(place)
        self.costs = [way.seconds / limit for _, way in self.ways]
        self.add({place: -cost for place, cost in enumerate(self.costs) if cost}, -1.0)
        for own in self.places:
            if len(own) > 1:
                self.add(dict.fromkeys(own, -1.0), -1.0)
        for (_, child), places in self.readers.items():
            self.add({**dict.fromkeys(self.places[child], 1.0), **dict.fromkeys(places, -1.0)}, 0.0)
        self.exclude_pairs()

    def add(self, coefficients: dict[int, float], least: float) -> None:
        self.rows.append(coefficients)
        self.least.append(least)

    def exclude_pairs(self) -> None:
        """Of two classes that read each other, one is computed without the other if anything needs them.

        A class and its transpose are such a pair. Without this, half of each would do for the other, and the
        program without whole numbers, which tells the solver where not to look, would say nothing.
        """
        users: dict[int, list[tuple[int, list[int]]]] = {}
        for (number, child), places in self.readers.items():
            users.setdefault(child, []).append((number, places))
        for first, second in self.readers:
            if first > second or (second, first) not in self.readers:
                continue
            self.forbid([first, second])
            pair = (first, second)
            entries = [
                p for c in pair for p in self.places[c] if not set(pair) & set(self.ways[p][1].children)
            ]
            for number, places in (user for member in pair for user in users[member]):
                if number not in pair:
                    self.add({**dict.fromkeys(entries, 1.0), **dict.fromkeys(places, -1.0)}, 0.0)

    def forbid(self, circle: list[int]) -> None:
        """Not all of these classes may read the next one."""
        places = [
            place
            for number, child in zip(circle, circle[1:] + circle[:1], strict=True)
            for place in self.readers[number, child]
        ]
        self.add(dict.fromkeys(places, -1.0), 1.0 - len(circle))

    def solve(self, seconds: float) -> tuple[dict[int, Variant], bool] | None:
        """The chosen ways by class, and whether they are proved the best."""
        from scipy.optimize import Bounds, LinearConstraint, milp  # no work at import
        from scipy.sparse import csr_array

        at = [(row, place, c) for row, own in enumerate(self.rows) for place, c in own.items()]
        rows, columns, data = (list(part) for part in zip(*at, strict=True))
        matrix = csr_array((data, (rows, columns)), shape=(len(self.rows), len(self.ways)))
        found = milp(
            np.array(self.costs),
            integrality=np.ones(len(self.ways)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, self.least, np.inf),
            options={"time_limit": seconds, "mip_rel_gap": _GAP},
        )
        if found.status == _INFEASIBLE:
            return {}, True
        if found.x is None:
            return None
        chosen = {number: way for (number, way), x in zip(self.ways, found.x, strict=True) if x > 0.5}
        return chosen, found.status == 0
