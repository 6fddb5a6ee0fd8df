"""The cheapest order in which to multiply a network: dynamic programming over connected sets of leaves."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from lepton_jax.ir.cost import Cost, Rates, dtype_name, seconds
from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._chains.labels import Labels
from lepton_jax.passes.simplify._chains.network import Network, Plan
from lepton_jax.rewrite import PassContext
from lepton_jax.rewrite.profit import is_fixed, trips_of

_MOST_SETS: Final = 400
_FEW_LEAVES: Final = 6
"""Of so few leaves also those are multiplied that have no dimension in common."""


class Best(NamedTuple):
    """How to multiply a set of leaves, and what it takes."""

    seconds: float
    plan: Plan


@dataclass(frozen=True)
class Order:
    """An order of multiplication.

    Attributes:
        plan: which leaves with which.
        places: for each factor, the set of leaves (as bits) whose product it is applied to.
        seconds: its estimated time.
        before: that of the program's own order.
    """

    plan: Plan
    places: tuple[int, ...]
    seconds: float
    before: float


class Problem(NamedTuple):
    """What the order depends on: equal for the layers of a network, so that it is solved once for all.

    Attributes:
        leaves: the labels of each leaf.
        output: the labels of the result.
        sizes: the length of each label.
        factors: of each factor the labels that it is applied to, and whether it costs every iteration.
        plan: the program's own order.
        dtype: of all arrays.
        trips: how often the loop around goes round.
        fixed: the leaves, as bits, that are the same on every iteration.
        rates: the target's.
    """

    leaves: tuple[Labels, ...]
    output: Labels
    sizes: tuple[int, ...]
    factors: tuple[tuple[Labels, bool], ...]
    plan: Plan
    dtype: np.dtype
    trips: int
    fixed: int
    rates: Rates


class Pricing:
    """What multiplying parts of a network takes on the target.

    A part is a set of leaves, as bits of an integer. In a loop, what is the same on every
    iteration counts once for the whole loop.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.dtype = dtype_name(problem.dtype)
        self.itemsize = problem.dtype.itemsize
        self.names = [frozenset(names) for names in problem.leaves]
        self.labels: dict[int, frozenset[int]] = {}

    def kept(self, part: int) -> frozenset[int]:
        """The labels of the product of a part: those that the rest or the result has too."""
        known = self.labels.get(part)
        if known is None:
            inside: set[int] = set()
            needed = set(self.problem.output)
            for i, names in enumerate(self.names):
                (inside if part >> i & 1 else needed).update(names)
            known = self.labels[part] = frozenset(inside & needed)
        return known

    def size(self, names: Iterable[int]) -> int:
        """How many elements an array with these labels has."""
        return math.prod(self.problem.sizes[name] for name in names)

    def shared(self, part: int, seconds: float) -> float:
        """The time of a step on each iteration, if it multiplies this part."""
        return seconds / self.problem.trips if part & ~self.problem.fixed == 0 else seconds

    def product(self, a: int, b: int, dense: bool = False) -> float | None:
        """Seconds to multiply two parts; None where it is no product of matrices, no scaling and not outer.

        Args:
            dense: allow elementwise products of arrays of which neither has all the labels.
        """
        left, right, result = self.kept(a), self.kept(b), self.kept(a | b)
        summed = (left | right) - result
        elements = self.size(left) + self.size(right) + self.size(result)
        if summed:
            if not summed <= left & right:
                return None
            flops = 2.0 * self.size(left | right)
            cost = Cost(flops, elements * self.itemsize, ((self.dtype, flops),), 1.0)
        elif dense or left <= right or right <= left or left.isdisjoint(right):
            cost = Cost(self.size(result), elements * self.itemsize, (), 1.0)
        else:
            return None
        return self.shared(a | b, seconds(cost, self.problem.rates))

    def scaling(self, part: int, always: bool, names: Iterable[int] | None = None) -> float:
        """Seconds to apply a factor to the product of a part, `always`: on each iteration."""
        size = self.size(self.kept(part) if names is None else names)
        took = seconds(Cost(size, 2.0 * size * self.itemsize, (), 1.0), self.problem.rates)
        return took if always else self.shared(part, took)


def best_order(network: Network, root: Node, ctx: PassContext) -> Order | None:
    """The cheapest order for a network; None where it cannot be told."""
    trips = trips_of(root)
    looped = trips > 1
    factors = tuple(
        (factor.names, factor.value is not None and not (looped and is_fixed(factor.value)))
        for factor in network.factors
    )
    problem = Problem(
        leaves=tuple(leaf.names for leaf in network.leaves),
        output=network.output,
        sizes=tuple(network.sizes[name] for name in range(len(network.sizes))),
        factors=factors,
        plan=network.plan,
        dtype=root.result.dtype,
        trips=trips,
        fixed=sum(1 << i for i, leaf in enumerate(network.leaves) if looped and is_fixed(leaf.value)),
        rates=ctx.rates,
    )
    return _solve(problem)


@functools.lru_cache(maxsize=1024)
def _solve(problem: Problem) -> Order | None:
    pricing = Pricing(problem)
    found = _cheapest(pricing, len(problem.leaves))
    if found is None:
        return None
    parts = list(_parts(found.plan))
    places, total = [], found.seconds
    for _, always in problem.factors:
        place = min(parts, key=functools.partial(pricing.scaling, always=always))
        places.append(place)
        total += pricing.scaling(place, always)
    before = _price(problem.plan, pricing)
    before += sum(pricing.scaling(-1, always, names) for names, always in problem.factors)
    return Order(found.plan, tuple(places), total, before)


def _cheapest(pricing: Pricing, count: int) -> Best | None:
    best: dict[int, Best] = {1 << i: Best(0.0, i) for i in range(count)}
    by_size: list[list[int]] = [[], list(best)]
    for size in range(2, count + 1):
        level: list[int] = []
        for small in range(1, size // 2 + 1):
            for a in by_size[small]:
                for b in by_size[size - small]:
                    _try(a, b, best, level, pricing)
        by_size.append(level)
        if len(best) > _MOST_SETS:
            return None
    return best.get((1 << count) - 1)


def _try(a: int, b: int, best: dict[int, Best], level: list[int], pricing: Pricing) -> None:
    """Multiply two parts, if they have nothing in common and it is the best way so far."""
    left, right = pricing.kept(a), pricing.kept(b)
    if a & b or (len(pricing.names) > _FEW_LEAVES and left and right and left.isdisjoint(right)):
        return
    step = pricing.product(a, b)
    if step is None:
        return
    total = best[a].seconds + best[b].seconds + step
    known = best.get(a | b)
    if known is not None and known.seconds <= total:
        return
    if known is None:
        level.append(a | b)
    first, second = (a, b) if a & -a < b & -b else (b, a)
    best[a | b] = Best(total, (best[first].plan, best[second].plan))


def _parts(plan: Plan) -> list[int]:
    """Every set of leaves whose product a plan makes, leaves included; the whole last."""
    if isinstance(plan, int):
        return [1 << plan]
    left, right = _parts(plan[0]), _parts(plan[1])
    return [*left, *right, left[-1] | right[-1]]


def _price(plan: Plan, pricing: Pricing) -> float:
    """Seconds of the program's own order."""
    total = 0.0

    def walk(plan: Plan) -> int:
        nonlocal total
        if isinstance(plan, int):
            return 1 << plan
        a, b = walk(plan[0]), walk(plan[1])
        total += pricing.product(a, b, dense=True) or 0.0
        return a | b

    walk(plan)
    return total
