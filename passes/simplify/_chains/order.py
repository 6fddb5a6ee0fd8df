"""The cheapest order in which to multiply a network: dynamic programming over connected sets of leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from lepton_jax.ir.cost import Cost
from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._chains.network import Factor, Network, Plan
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


class Pricing:
    """What multiplying parts of a network takes on the target.

    A part is a set of leaves, as bits of an integer. In a loop, what is the same on every
    iteration counts once for the whole loop.
    """

    def __init__(self, network: Network, root: Node, ctx: PassContext) -> None:
        self.network = network
        self.ctx = ctx
        self.dtype = str(root.result.dtype)
        self.itemsize = root.result.dtype.itemsize
        self.trips = trips_of(root)
        self.names = [frozenset(leaf.names) for leaf in network.leaves]
        self.fixed = sum(
            1 << i for i, leaf in enumerate(network.leaves) if self.trips > 1 and is_fixed(leaf.value)
        )
        self.labels: dict[int, frozenset[int]] = {}

    def kept(self, part: int) -> frozenset[int]:
        """The labels of the product of a part: those that the rest or the result has too."""
        known = self.labels.get(part)
        if known is None:
            inside: set[int] = set()
            needed = set(self.network.output)
            for i, names in enumerate(self.names):
                (inside if part >> i & 1 else needed).update(names)
            known = self.labels[part] = frozenset(inside & needed)
        return known

    def size(self, names: Iterable[int]) -> int:
        """How many elements an array with these labels has."""
        return math.prod(self.network.sizes[name] for name in names)

    def shared(self, part: int, seconds: float) -> float:
        """The time of a step on each iteration, if it multiplies this part."""
        return seconds / self.trips if part & ~self.fixed == 0 else seconds

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
        return self.shared(a | b, self.ctx.seconds(cost))

    def scaling(self, part: int, factor: Factor, names: Iterable[int] | None = None) -> float:
        """Seconds to apply a factor to the product of a part."""
        size = self.size(self.kept(part) if names is None else names)
        seconds = self.ctx.seconds(Cost(size, 2.0 * size * self.itemsize, (), 1.0))
        if factor.value is None or (self.trips > 1 and is_fixed(factor.value)):
            return self.shared(part, seconds)
        return seconds


def best_order(network: Network, root: Node, ctx: PassContext) -> Order | None:
    """The cheapest order for a network; None where it cannot be told."""
    pricing = Pricing(network, root, ctx)
    found = _cheapest(pricing, len(network.leaves))
    if found is None:
        return None
    parts = list(_parts(found.plan))
    places, seconds = [], found.seconds
    for factor in network.factors:
        place = min(parts, key=lambda part: pricing.scaling(part, factor))
        places.append(place)
        seconds += pricing.scaling(place, factor)
    before = _price(network.plan, pricing)
    before += sum(pricing.scaling(-1, factor, factor.names) for factor in network.factors)
    return Order(found.plan, tuple(places), seconds, before)


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
    seconds = best[a].seconds + best[b].seconds + step
    known = best.get(a | b)
    if known is not None and known.seconds <= seconds:
        return
    if known is None:
        level.append(a | b)
    first, second = (a, b) if a & -a < b & -b else (b, a)
    best[a | b] = Best(seconds, (best[first].plan, best[second].plan))


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
