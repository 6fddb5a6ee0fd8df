"""Atoms: the indices of dimensions, united where they are cut together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from lepton_jax.ir.graph import Graph, Value

Ints: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
Bools: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"
Dims: TypeAlias = tuple[Ints, ...]
"""Of each dimension of a value the atoms of its indices; of a symbolic dimension a single one."""

Kept: TypeAlias = "tuple[Ints | None, ...]"
"""Of each dimension of a value the indices that stay, increasing; None where all stay."""

_FREE: Final = np.iinfo(np.int64).max


class DimensionError(ValueError):
    """A dimension cannot be cut so; the message says which operation stands against it."""


class Atoms:
    """Indices that are united and pinned one after the other, then asked for.

    Attributes:
        size: how many atoms there are.
        reasons: why some are pinned, in the order in which it was found.
    """

    def __init__(self) -> None:
        self.size = 0
        self.reasons: list[str] = []
        self._pairs: list[tuple[Ints, Ints]] = []
        self._pins: list[tuple[Ints, int]] = []
        self._known: dict[str, int] = {}
        self._parent: Ints = np.zeros(0, np.int64)
        self._first: Ints = np.zeros(0, np.int64)

    def fresh(self, count: int) -> Ints:
        """New atoms."""
        found = np.arange(self.size, self.size + count, dtype=np.int64)
        self.size += count
        return found

    def unite(self, left: Ints, right: Ints) -> None:
        """Let atoms be cut together, elementwise; the arrays broadcast."""
        if left is not right:
            left, right = np.broadcast_arrays(left, right)
            self._pairs.append((left.ravel(), right.ravel()))

    def pin(self, atoms: Ints, reason: str) -> None:
        """Let atoms not be cut."""
        index = self._known.setdefault(reason, len(self.reasons))
        if index == len(self.reasons):
            self.reasons.append(reason)
        self._pins.append((atoms, index))

    def solve(self) -> None:
        """Take in what was united and pinned since the last time."""
        old = len(self._parent)
        self._parent = np.concatenate([self._parent, np.arange(old, self.size, dtype=np.int64)])
        self._first = np.concatenate([self._first, np.full(self.size - old, _FREE, np.int64)])
        if self._pairs:
            left = self.labels(np.concatenate([left for left, _ in self._pairs]))
            right = self.labels(np.concatenate([right for _, right in self._pairs]))
            apart = left != right
            roots, places = np.unique(np.concatenate([left[apart], right[apart]]), return_inverse=True)
            half = len(places) // 2
            united = roots[_components(len(roots), places[:half], places[half:])]
            self._parent[roots] = united
            np.minimum.at(self._first, united, self._first[roots])
        if self._pins:
            atoms = np.concatenate([atoms for atoms, _ in self._pins])
            index = np.repeat([i for _, i in self._pins], [len(atoms) for atoms, _ in self._pins])
            np.minimum.at(self._first, self.labels(atoms), index)
        self._pairs, self._pins = [], []

    def labels(self, atoms: Ints) -> Ints:
        """Of each atom the first of those that are cut with it; as of the last `solve`."""
        found = self._parent[atoms]
        while True:
            further = self._parent[found]
            if np.array_equal(further, found):
                break
            found = further
        self._parent[atoms] = found
        return found

    def pinned(self, atoms: Ints) -> Bools:
        """Which atoms are pinned, or cut with one that is; as of the last `solve`."""
        return np.not_equal(self._first[self.labels(atoms)], _FREE)

    def reason(self, atom: int) -> str | None:
        """Why an atom is pinned, the first that was found; None if it is not."""
        index = int(self._first[self.labels(np.array([atom]))[0]])
        return None if index == _FREE else self.reasons[index]


def _components(size: int, left: Ints, right: Ints) -> Ints:
    """Of each of `size` items the least that pairs connect it with."""
    labels = np.arange(size, dtype=np.int64)
    while True:
        left, right = labels[left], labels[right]
        apart = left != right
        if not apart.any():
            return labels
        left, right = left[apart], right[apart]
        np.minimum.at(labels, np.maximum(left, right), np.minimum(left, right))
        while True:
            further = labels[labels]
            if np.array_equal(further, labels):
                break
            labels = further


class Parts:
    """The atoms of every dimension of a graph, solved.

    Args:
        atoms: solved.
        dims: of each value the atoms of its dimensions.
        paths: the names of the graph's inputs, for messages.
    """

    def __init__(self, atoms: Atoms, dims: Mapping[Value, Dims], paths: Sequence[str]) -> None:
        self.atoms = atoms
        self.dims = dims
        self.paths = paths

    def kept(self, graph: Graph, param_kept: Mapping[tuple[int, int], Ints]) -> dict[Value, Kept]:
        """See `Dependencies.kept`."""
        cut = np.zeros(self.atoms.size, bool)
        given = {
            key: self._checked(graph, key, np.asarray(kept, np.int64)) for key, kept in param_kept.items()
        }
        for (position, dim), kept in given.items():
            atoms = self.dims[graph.inputs[position]][dim]
            gone = np.delete(atoms, kept)
            pinned = self.atoms.pinned(gone)
            if pinned.any():
                index = int(np.setdiff1d(np.arange(len(atoms)), kept)[np.argmax(pinned)])
                why = self.atoms.reason(int(atoms[index]))
                raise DimensionError(f"{self.paths[position]}[{dim}] cannot lose index {index}: {why}")
            cut[self.atoms.labels(gone)] = True
        for (position, dim), kept in given.items():
            stays = cut[self.atoms.labels(self.dims[graph.inputs[position]][dim][kept])]
            if stays.any():
                index = int(kept[np.argmax(stays)])
                raise DimensionError(
                    f"{self.paths[position]}[{dim}] cannot keep index {index}: what is cut elsewhere takes "
                    "it along; leave the dimension out to have it follow"
                )
        return self._of_values(cut)

    def _checked(self, graph: Graph, key: tuple[int, int], kept: Ints) -> Ints:
        position, dim = key
        if not 0 <= position < len(graph.inputs) or not 0 <= dim < graph.inputs[position].ndim:
            raise DimensionError(f"{graph.name} has no dimension {dim} of an input {position}")
        size = len(self.dims[graph.inputs[position]][dim])
        if kept.ndim != 1 or (len(kept) and (kept[0] < 0 or kept[-1] >= size or (np.diff(kept) < 1).any())):
            raise DimensionError(
                f"what stays of {self.paths[position]}[{dim}] is to be increasing indices below {size}"
            )
        return kept

    def _of_values(self, cut: Bools) -> dict[Value, Kept]:
        known: dict[int, Ints | None] = {}

        def stays(atoms: Ints) -> Ints | None:
            key = id(atoms)
            if key not in known:
                gone = cut[self.atoms.labels(atoms)]
                known[key] = np.flatnonzero(~gone) if gone.any() else None
            return known[key]

        found = {value: tuple(map(stays, dims)) for value, dims in self.dims.items()}
        for value, kept in found.items():
            for dim, each in enumerate(kept):
                if each is not None and not len(each):
                    where = "an input" if value.node is None else value.node.op
                    raise DimensionError(
                        f"nothing would stay of dimension {dim} of {where} {value.aval.str_short()}"
                    )
        return found
