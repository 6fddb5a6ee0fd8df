"""Cutting arrays into blocks along two axes, and putting results together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

from lepton_jax.passes.fuse._attention.axes import Labels


def cut(x: Any, axis: int, block: int, order: Sequence[int] | None = None) -> Any:
    """[..., length, ...] → [blocks, ..., block, ...]; a short last block repeats the last element.

    Args:
        axis: the axis that is cut, after the transpose.
        order: a transpose to be made on the way, None for none.
    """
    order = range(x.ndim) if order is None else order
    axis = order[axis]
    x = filled(x, axis, block)
    shape = (*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :])
    return x.reshape(shape).transpose(axis, *(d + (d >= axis) for d in order))


def filled(x: Any, axis: int, block: int) -> Any:
    """An array whose length along an axis is a multiple of `block`: the last element is repeated."""
    length = x.shape[axis]
    short = -length % block
    if not short:
        return x
    last = lax.slice_in_dim(x, length - 1, length, axis=axis)
    more = tuple(short if d == axis else size for d, size in enumerate(x.shape))
    return lax.concatenate([x, lax.broadcast_in_dim(last, more, range(x.ndim))], axis)


def joined(x: Any, axis: int, length: int, blocks: int = 0) -> Any:
    """[..., blocks, ..., block, ...] → [..., length, ...].

    Args:
        axis: that of the result.
        length: its length there; what a short last block has more is dropped.
        blocks: the axis that counts the blocks.
    """
    x = jnp.moveaxis(x, blocks, axis)
    x = x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    return x if x.shape[axis] == length else lax.slice_in_dim(x, 0, length, axis=axis)


def pick(x: Any, index: Any) -> Any:
    """`x[index]` for an index that is in range."""
    starts, sizes = (index, *[0] * (x.ndim - 1)), (1, *x.shape[1:])
    return lax.squeeze(lax.dynamic_slice(x, starts, sizes, allow_negative_indices=False), (0,))


def piece(x: Any, axis: int, number: Any, length: int) -> Any:
    """Block `number` of those of some length along an axis."""
    if x.shape[axis] == length:
        return x
    starts = [number * length if d == axis else 0 for d in range(x.ndim)]
    sizes = [length if d == axis else size for d, size in enumerate(x.shape)]
    return lax.dynamic_slice(x, starts, sizes, allow_negative_indices=False)


def put(x: Any, new: Any, axis: int, number: Any) -> Any:
    """The array with another block `number` along an axis."""
    if x.shape == new.shape:
        return new
    starts = [number * new.shape[axis] if d == axis else 0 for d in range(x.ndim)]
    return lax.dynamic_update_slice(x, new, starts, allow_negative_indices=False)


@dataclass(frozen=True)
class Cut:
    """Arrays cut into blocks.

    Attributes:
        labels: the query and key axes of each array.
        rows: those with queries, [query blocks, ...]; those with keys too, [query blocks, key blocks, ...].
        columns: those with keys alone, [key blocks, ...].
        whole: the others.
    """

    labels: tuple[Labels, ...]
    rows: tuple[Any, ...]
    columns: tuple[Any, ...]
    whole: tuple[Any, ...]

    def at(self, pair: tuple[Any, Any]) -> list[Any]:
        """All arrays' blocks for a query block and a key block, by number."""
        row = [pick(r, pair[0]) for r in self.rows]
        return self.blocks(row, [pick(c, pair[1]) for c in self.per_key(row)])

    def per_key(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """What changes with the key block, [key blocks, ...], for the block of queries that `row` is of."""
        both = [k is not None for q, k in self.labels if q is not None]
        return (*self.columns, *(r for r, keys in zip(row, both, strict=True) if keys))

    def blocks(self, row: Sequence[Any], column: Sequence[Any]) -> list[Any]:
        """All arrays' blocks, in the order of the labels: `column` is one element of `per_key(row)`."""
        rows, whole = iter(row), iter(self.whole)
        columns, both = iter(column[: len(self.columns)]), iter(column[len(self.columns) :])
        found = []
        for query, key in self.labels:
            if query is None:
                found.append(next(whole if key is None else columns))
                continue
            block = next(rows)
            found.append(block if key is None else next(both))
        return found


def cut_all(
    arrays: Sequence[Any],
    labels: Sequence[Labels],
    block: tuple[int, int],
    orders: Sequence[Sequence[int] | None] = (),
) -> Cut:
    """Transpose arrays and cut them along the axes that they then have."""
    rows: list[Any] = []
    columns: list[Any] = []
    whole: list[Any] = []
    for x, (query, key), order in zip(arrays, labels, orders or [None] * len(labels), strict=True):
        if order is not None and (query is None) != (key is None):
            side = 0 if key is None else 1
            axis = query if key is None else key
            assert axis is not None
            (columns if side else rows).append(cut(x, axis, block[side], order))
            continue
        x = x if order is None else x.transpose(order)
        if key is not None:
            x = cut(x, key, block[1])
        if query is not None:
            rows.append(cut(x, query + (key is not None), block[0]))
        elif key is not None:
            columns.append(x)
        else:
            whole.append(x)
    return Cut(tuple(labels), tuple(rows), tuple(columns), tuple(whole))
