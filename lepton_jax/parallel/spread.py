"""The fixpoint of propagation: what splits a factor of a node in one array splits it in the others."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.cost import bytes_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.factors import Dims, Factors, factors_of
from lepton_jax.parallel.factors.elementwise import ELEMENTWISE

Axes = tuple[str, ...]

EARLY: Final = ELEMENTWISE | {"reshape", "squeeze", "expand_dims", "transpose", "rev"}
"""Operations that keep what they are given: these go first."""


@dataclass(frozen=True, slots=True)
class _Array:
    """One array of a node.

    Attributes:
        group: which array of the program it is.
        bytes: its size.
        dims: of those of its dimensions that have factors that can be split, the dimension of the group and
            the factors, as far as these are not whole.
    """

    group: int
    bytes: int
    dims: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a node ties together."""

    arrays: tuple[_Array, ...]
    sizes: tuple[int, ...]
    late: frozenset[int]
    tier: int


class Spread:
    """Layouts of the groups of a program, while they grow.

    Attributes:
        dims: of each group the axes of each dimension.
        fixed: of each group the dimensions that stay as they are.
        silent: groups that keep their layouts to themselves for now.
    """

    def __init__(self, ndim: Iterable[int], sizes: Mapping[str, int]) -> None:
        self.dims: list[list[Axes]] = [[()] * count for count in ndim]
        self.fixed: list[set[int]] = [set() for _ in self.dims]
        self.silent: set[int] = set()
        self._sizes = sizes
        self._rules: list[_Rule] = []
        self._users: list[list[int]] = [[] for _ in self.dims]
        self._bytes = [0] * len(self.dims)
        self._heap: list[tuple[int, int, int]] = []
        self._waiting: dict[tuple[bool, int], tuple[int, int]] = {}

    def add(self, node: Node, number: Mapping[Value, int]) -> None:
        """Let what splits one array of a node split the others."""
        factors = factors_of(node)
        shared = _shared(factors)
        arrays = []
        values = [*node.operands, *node.results]
        for value, dims in zip(values, (*factors.operands, *factors.results), strict=True):
            group = number[value]
            offset = len(self.dims[group]) - value.ndim
            kept = tuple(
                (offset + dim, parts)
                for dim, each in enumerate(dims)
                if (parts := _free(each, factors)) and not shared.isdisjoint(parts)
            )
            if kept:
                arrays.append(_Array(group, bytes_of(value), kept))
        arrays = list(dict.fromkeys(arrays))
        if len(arrays) < 2 and len({part for each in arrays for _, parts in each.dims for part in parts}) < 2:
            return
        late = frozenset(factors.reduced) & shared
        self._rules.append(_Rule(tuple(arrays), factors.sizes, late, int(node.op not in EARLY)))
        for group in {each.group for each in arrays}:
            self._users[group].append(len(self._rules) - 1)
            self._bytes[group] = max(self._bytes[group], *(a.bytes for a in arrays if a.group == group))

    def run(self, groups: Iterable[int]) -> None:
        """Spread the layouts of these groups until nothing changes."""
        for group in groups:
            if any(self.dims[group]):
                self._call(group)
        while self._heap:
            tier, size, index = heapq.heappop(self._heap)
            if self._waiting.get((tier == 2, index)) != (tier, size):
                continue
            del self._waiting[tier == 2, index]
            for group in self._visit(self._rules[index], tier == 2):
                self._call(group)

    def _call(self, group: int) -> None:
        """Have the nodes looked at that have an array of this group."""
        size = -self._bytes[group]
        for index in self._users[group]:
            rule = self._rules[index]
            for tier in (rule.tier, 2) if rule.late else (rule.tier,):
                key = (tier == 2, index)
                if key not in self._waiting or (tier, size) < self._waiting[key]:
                    self._waiting[key] = (tier, size)
                    heapq.heappush(self._heap, (tier, size, index))

    def _visit(self, rule: _Rule, late: bool) -> list[int]:
        """Split the factors of a node alike in all arrays; returns the groups that changed."""
        best: dict[int, tuple[int, Axes]] = {}
        for array in rule.arrays:
            if array.group in self.silent:
                continue
            for dim, parts in array.dims:
                names = self.dims[array.group][dim]
                for part, axes in self._taken(parts, names, rule) if names else ():
                    if (part in rule.late) == late and _wins(array.bytes, axes, best.get(part)):
                        best[part] = (array.bytes, axes)
        changed = []
        for array in rule.arrays if best else ():
            wanted = [
                (max(best[part][0] for part in parts if part in best), dim, parts)
                for dim, parts in array.dims
                if dim not in self.fixed[array.group] and any(part in best for part in parts)
            ]
            for _, dim, parts in sorted(wanted, key=lambda each: -each[0]):
                if self._grow(array.group, dim, parts, best, rule):
                    changed.append(array.group)
        return list(dict.fromkeys(changed))

    def _taken(self, parts: tuple[int, ...], names: Axes, rule: _Rule) -> list[tuple[int, Axes]]:
        """The axes of each factor of a dimension that is split over these; as far as it goes."""
        found: list[tuple[int, Axes]] = []
        rest = list(names)
        for part in parts:
            left, mine = rule.sizes[part], 0
            while mine < len(rest) and left % self._sizes[rest[mine]] == 0 and left > 1:
                left //= self._sizes[rest[mine]]
                mine += 1
            if mine:
                found.append((part, tuple(rest[:mine])))
            rest = rest[mine:]
            if left > 1 or not rest:
                break
        return found

    def _grow(
        self, group: int, dim: int, parts: tuple[int, ...], best: Mapping[int, tuple[int, Axes]], rule: _Rule
    ) -> bool:
        """Add to the axes of a dimension those that its factors have elsewhere."""
        dims = self.dims[group]
        old = dims[dim]
        now = dict(self._taken(parts, old, rule))
        if sum(map(len, now.values())) != len(old):
            return False
        used = {name for each in dims for name in each}
        new: list[str] = []
        for place, part in enumerate(parts):
            mine = now.get(part, ())
            if any(later in now for later in parts[place + 1 :]):
                new += mine
                continue
            axes = best[part][1] if part in best else mine
            if axes[: len(mine)] != mine:
                axes = mine
            added = axes[len(mine) :]
            allowed = next((i for i, name in enumerate(added) if name in used), len(added))
            new += (*mine, *added[:allowed])
            used.update(added[:allowed])
            if allowed < len(added) or _left(rule.sizes[part], (*mine, *added), self._sizes) != 1:
                break
        if tuple(new) == old:
            return False
        dims[dim] = tuple(new)
        return True


def _wins(size: int, axes: Axes, other: tuple[int, Axes] | None) -> bool:
    """Whether the axes that a factor has in an array of this size count, rather than those found so far."""
    if other is None:
        return True
    known = other[1]
    common = min(len(axes), len(known))
    if axes[:common] == known[:common]:
        return len(axes) > len(known)
    return size > other[0]


def _left(size: int, names: Axes, sizes: Mapping[str, int]) -> int:
    for name in names:
        size //= sizes[name]
    return size


def _free(parts: tuple[int, ...], factors: Factors) -> tuple[int, ...]:
    """The factors of a dimension before the first that stays whole."""
    count = next((i for i, part in enumerate(parts) if part in factors.whole), len(parts))
    return parts[:count]


def _shared(factors: Factors) -> set[int]:
    """The factors that more than one array has."""
    times: dict[int, int] = {}
    for dims in (*factors.operands, *factors.results):
        for part in _parts(dims):
            times[part] = times.get(part, 0) + 1
    return {part for part, count in times.items() if count > 1 and part not in factors.whole}


def _parts(dims: Dims) -> set[int]:
    return {part for each in dims for part in each}
