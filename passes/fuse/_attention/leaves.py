"""Arrays of which blocks are cut when they are wanted, without copies of those that are cut once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lepton_jax.passes.fuse._attention.axes import Labels
from lepton_jax.passes.fuse._attention.blocks import filled, piece
from lepton_jax.passes.fuse._attention.program import Program


@dataclass(frozen=True)
class Turned:
    """An array that was transposed to be cut along one axis.

    A transpose whose result has its outer axes merged is one pass over memory; with all of them it is two.

    Attributes:
        array: [all axes in front, length, all axes behind].
        shape: that of a block.
        length: how long a block is.
    """

    array: Any
    shape: tuple[int, ...]
    length: int

    def block(self, number: Any) -> Any:
        """Block `number`."""
        return piece(self.array, 1, number, self.length).reshape(self.shape)


def turned(x: Any, order: Sequence[int] | None, axis: int, length: int) -> Turned:
    """Transpose an array; `axis` is where it is cut then, into blocks of some length."""
    x = x if order is None else x.transpose(order)
    shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
    return Turned(filled(_flat(x, axis), 1, length), shape, length)


def _flat(x: Any, axis: int) -> Any:
    return x.reshape(math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))


@dataclass(frozen=True)
class Leaves:
    """The leaves of a program.

    Attributes:
        program: says how their blocks are prepared, and how those with queries are transposed.
        arrays: the leaves with keys alone transposed, the others as they were; their lengths are multiples
            of the block's.
        axes: the query and key axes of each array that is not transposed.
        block: how many queries and keys a block has.
    """

    program: Program
    arrays: tuple[Any, ...]
    axes: tuple[Labels, ...]
    block: tuple[int, int]

    def rows(self, number: Any) -> list[Any]:
        """For each leaf that has queries but no keys its block; None for the others."""
        return [
            self._cut(leaf, number, 0) if query is not None and key is None else None
            for leaf, (query, key) in enumerate(self.program.leaves)
        ]

    def blocks(self, rows: Sequence[Any], number: Any, column: Any) -> list[Any]:
        """All leaves' blocks for a block of queries, of which `rows` are given, and one of keys."""
        return [self._cut(leaf, number, column) if row is None else row for leaf, row in enumerate(rows)]

    def _cut(self, leaf: int, number: Any, column: Any) -> Any:
        x = self.arrays[leaf]
        if isinstance(x, Turned):
            return self.program.prepared(leaf, x.block(column))
        for axis, which, length in zip(self.axes[leaf], (number, column), self.block, strict=True):
            x = x if axis is None else piece(x, axis, which, length)
        order = self.program.orders[leaf] if self.program.orders else None
        if order is None:
            return self.program.prepared(leaf, x)
        x = x.transpose(order)
        axis = self.program.leaves[leaf][0]
        if axis is None:
            return self.program.prepared(leaf, x)
        return self.program.prepared(leaf, _flat(x, axis)).reshape(x.shape)


def leaves_of(arrays: Sequence[Any], program: Program, block: tuple[int, int]) -> Leaves:
    """What a program needs of its leaves.

    Those without queries are read again for every block of them, so they are transposed once and whole.
    """
    made: list[Any] = []
    axes: list[Labels] = []
    for leaf, x in enumerate(arrays):
        query, key = program.leaves[leaf]
        order = program.orders[leaf] if program.orders else None
        if query is None and key is not None:
            made.append(turned(x, order, key, block[1]))
            axes.append((None, None))
            continue
        if order is not None:
            query, key = (a if a is None else order[a] for a in (query, key))
        for axis, length in ((query, block[0]), (key, block[1])):
            x = x if axis is None else filled(x, axis, length)
        made.append(x)
        axes.append((query, key))
    return Leaves(program, tuple(made), tuple(axes), block)
