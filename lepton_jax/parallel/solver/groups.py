"""Dimension groups and clusters: what shares one decision.

Two dimensions are of one *group* where an operation keeps them together: those of an elementwise chain, a
transpose, a reshape, a reduction. Values whose groups are the same are one *cluster*: one choice of a group
for each mesh axis gives the layouts of all of them (Alpa's "follow" merging, Zheng et al., 2022; the
colours of TOAST, Alabed et al., 2025). Products and look-ups end a cluster.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from lepton_jax.ir._cost.sizes import aval_bytes
from lepton_jax.parallel.factors import Factors
from lepton_jax.parallel.solver.flat import Flat, Op
from lepton_jax.parallel.union_find import UnionFind

_MOST_GROUPS: Final = 6


@dataclass(eq=False)
class Cluster:
    """Values that share one decision.

    Attributes:
        values: their numbers.
        groups: of each value of each dimension the group, as an index into `sizes`; None where it is never
            split.
        sizes: of each group what a number of parts must divide.
        weights: of each group the bytes of the values that have it.
        sums: whether they may lie as parts of a sum.
    """

    values: list[int]
    groups: dict[int, tuple[int | None, ...]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    sums: bool = False


def major(factors: tuple[int, ...]) -> int | None:
    """The factor by which a dimension is split: its major one."""
    return factors[0] if factors else None


def clusters(flat: Flat, alone: Collection[int] = ()) -> tuple[list[Cluster], dict[int, Cluster]]:
    """The clusters of a program, and of each value with dimensions its cluster.

    Args:
        alone: values that are a cluster each.
    """
    return _Clusters(flat, frozenset(alone)).found()


Dim = tuple[int, int]


class _Clusters:
    def __init__(self, flat: Flat, alone: frozenset[int]) -> None:
        self.flat = flat
        self.alone = alone
        self.dims: UnionFind[Dim] = UnionFind()
        self.values: UnionFind[int] = UnionFind()
        self.parts: dict[Dim, int] = {}
        self.ndim = [len(getattr(aval, "shape", ())) for aval in flat.avals]
        self.bytes = [float(aval_bytes(aval)) for aval in flat.avals]
        self.members: dict[int, list[int]] = {}
        self.join_all()

    def join_all(self) -> None:
        for a, b, pairs in self.flat.ties:
            if self.may(a, b):
                for i, j in pairs:
                    self.dims.join((a, i), (b, j))
                self.values.join(a, b)
        light = [op for op in self.flat.ops if not op.heavy and op.node is not None]
        later: list[tuple[Op, int, int]] = []
        for op in light:
            self.whole_parts(op)
            arrays = [(v, _index(dims, op.factors)) for v, dims in _places(op) if self.ndim[v]]
            results = arrays[len(arrays) - sum(1 for v in op.results if self.ndim[v]) :]
            for value, mine in arrays:
                for result, theirs in results:
                    if value == result or not mine or not theirs or not self.may(value, result):
                        continue
                    if mine == theirs:
                        self.together(op, value, result)
                    elif theirs < mine and op.factors.reduced:
                        later.append((op, value, result))
        for op, value, result in later:
            if self.few(op, value, result):
                self.together(op, value, result)

    def may(self, a: int, b: int) -> bool:
        sums = self.flat.sums
        return a not in self.alone and b not in self.alone and (a in sums) == (b in sums)

    def whole_parts(self, op: Op) -> None:
        """Of a dimension made of several factors, only the major one is split."""
        for value, dims in _places(op):
            for d, factors in enumerate(dims):
                if len(factors) > 1:
                    size = op.factors.sizes[factors[0]]
                    self.parts[value, d] = math.gcd(self.parts.get((value, d), 0), size)

    def together(self, op: Op, a: int, b: int) -> None:
        """Join two values of an operation, and the dimensions that it keeps together."""
        if self.values.find(a) != self.values.find(b):
            self.values.join(a, b)
        for i, j in _pairs(op, a, b):
            self.dims.join((a, i), (b, j))

    def few(self, op: Op, value: int, result: int) -> bool:
        """Whether a cluster stays simple when a reduction's result joins it."""
        if not self.members:
            for v in range(len(self.ndim)):
                if self.ndim[v]:
                    self.members.setdefault(self.values.find(v), []).append(v)
        a, b = self.values.find(value), self.values.find(result)
        if a == b:
            return True
        mine = {self.dims.find((v, d)) for v in self.members[a] for d in range(self.ndim[v])}
        theirs = {self.dims.find((v, d)) for v in self.members[b] for d in range(self.ndim[v])}
        shared = {self.dims.find((result, j)) for _, j in _pairs(op, value, result)}
        if len(mine) + len(theirs) - len(shared) > max(len(mine), len(theirs), _MOST_GROUPS):
            return False
        self.members[a] = self.members[a] + self.members[b]
        del self.members[b]
        return True

    def found(self) -> tuple[list[Cluster], dict[int, Cluster]]:
        by_root: dict[int, list[int]] = defaultdict(list)
        for value, ndim in enumerate(self.ndim):
            if ndim:
                by_root[self.values.find(value)].append(value)
        fixed = {self.dims.find(dim) for dim in self.flat.fixed}
        parts: dict[Dim, int] = {}
        for dim, size in self.parts.items():
            root = self.dims.find(dim)
            parts[root] = math.gcd(parts.get(root, 0), size)
        all_clusters = [self.cluster(values, fixed, parts) for values in by_root.values()]
        return all_clusters, {value: each for each in all_clusters for value in each.values}

    def cluster(self, values: list[int], fixed: set[Dim], parts: dict[Dim, int]) -> Cluster:
        made = Cluster(values, sums=values[0] in self.flat.sums)
        known: dict[Dim, int] = {}
        for value in values:
            shape = self.flat.avals[value].shape
            row: list[int | None] = []
            seen: set[Dim] = set()
            for d, size in enumerate(shape):
                root = self.dims.find((value, d))
                if root in fixed or root in seen or type(size) is not int or size < 2:
                    row.append(None)
                    continue
                seen.add(root)
                group = known.setdefault(root, len(known))
                if group == len(made.sizes):
                    made.sizes.append(parts.get(root, 0))
                    made.weights.append(0.0)
                made.sizes[group] = math.gcd(made.sizes[group], size)
                made.weights[group] += self.bytes[value]
                row.append(group)
            made.groups[value] = tuple(row)
        return made


def _places(op: Op) -> list[tuple[int, tuple[tuple[int, ...], ...]]]:
    """The values of an operation with the factors of their dimensions, results last."""
    factors = op.factors
    return [*zip(op.operands, factors.operands, strict=True), *zip(op.results, factors.results, strict=True)]


def _index(dims: tuple[tuple[int, ...], ...], factors: Factors) -> frozenset[int]:
    """The factors of an array by which it can be split."""
    return frozenset(f for each in dims for f in each if f not in factors.whole)


def _pairs(op: Op, a: int, b: int) -> list[tuple[int, int]]:
    """The dimensions of two values that have the same major factor."""
    mine = next(dims for value, dims in _places(op) if value == a)
    theirs = next(dims for value, dims in reversed(_places(op)) if value == b)
    where = {major(each): j for j, each in enumerate(theirs) if each and each[0] not in op.factors.whole}
    return [(i, where[each[0]]) for i, each in enumerate(mine) if each and each[0] in where]
