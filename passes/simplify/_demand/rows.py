"""Gathers of rows by number, in the one form that `readers` knows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._demand.makers import plan_of
from lepton_jax.passes.simplify._demand.readers import rows_of
from lepton_jax.passes.simplify._gather.counting import row_numbers
from lepton_jax.passes.simplify._movement.common import unplaced
from lepton_jax.rewrite import PassContext, erase_dead, rewrite
from lepton_jax.rewrite.replacement import write


@dataclass(frozen=True)
class Rows:
    """Which rows a gather takes, hashable.

    Attributes:
        axis: the dimension along which they are numbered.
        kept: whether the result has a dimension of size one for it.
        column: which of the index's last dimension has the numbers.
        batch: (dimension of the array, dimension of the index): numbers for each row of that dimension.
        offsets: the dimensions of the result that do not come from the index.
        mode: what happens out of bounds.
        fill: what it gives there, where that is a number of its own.
        hints: whether the numbers are sorted, and differ.
    """

    axis: int
    kept: bool
    column: int
    batch: tuple[tuple[int, int], ...]
    offsets: tuple[int, ...]
    mode: Any
    fill: float | None
    hints: tuple[bool, bool]


def in_rows(reader: Node, maker: Node, ctx: PassContext) -> Node | None:
    """A gather of rows written by `rows_of`, what else there is behind it; that gather, or None.

    `x[rows]`, `jnp.take(x, rows, axis)`, and other rows for each of a batch: `x[arange(n), rows]`,
    `take_along_axis(x, rows[:, :, None], 1)`, `vmap(lambda x, rows: x[rows])`.
    """
    if reader.op != "gather" or len(reader.operands) != 2:
        return None
    found = _rows(reader)
    if found is None:
        return None
    x, (index, rows) = reader.operands[0], found
    if 4 * reader.result.aval.size > 3 * x.aval.size or 0 in reader.result.shape:
        return None
    if plan_of(maker, (rows.axis, *(d for d, _ in rows.batch))) is None or unplaced(reader, ctx) is not None:
        return None
    if not ctx.fire("rows-by-number", reader):
        return None
    fresh = write(rewrite(rows_by_number, x, index, rows=rows), reader, "rows-by-number")
    erase_dead(reader)
    return next(n for n in fresh if n.op == "gather" and n.operands[0] is x)


def _rows(reader: Node) -> tuple[Value, Rows] | None:
    """The numbers of the rows, and which rows they are, if a gather takes whole rows."""
    p, (x, index) = reader.params, reader.operands
    numbers = p["dimension_numbers"]
    mapped = tuple(map(int, numbers.start_index_map))
    batch = dict(
        zip(
            map(int, numbers.operand_batching_dims),
            map(int, numbers.start_indices_batching_dims),
            strict=True,
        )
    )
    collapsed = set(map(int, numbers.collapsed_slice_dims))
    if len(mapped) > 1 and not batch and (counted := row_numbers(index, mapped, x.shape)) is not None:
        if not set(counted[0]) <= collapsed or facts_of(counted[1]).iota is not None:
            return None  # a diagonal has a rule of its own
        batch, index = counted
        mapped = tuple(d for d in mapped if d not in batch)
    cut = [d for d, n in enumerate(x.shape) if d not in batch and p["slice_sizes"][d] != n]
    if len(cut) != 1 or cut[0] not in mapped or index.ndim < 1 or index.shape[-1] != len(mapped):
        return None
    (axis,) = cut
    if not collapsed - set(batch) <= {axis} or p["slice_sizes"][axis] != 1:
        return None
    fills = "FILL" in str(p["mode"])
    if fills and (len(mapped) > 1 or not jnp.issubdtype(x.dtype, jnp.floating)):
        return None
    if batch and x.aval.size == math.prod(x.shape[d] for d in (*batch, axis)):
        return None  # single entries, which have rules of their own
    fill = float("nan") if p["fill_value"] is None else float(p["fill_value"])
    return index, Rows(
        axis,
        axis not in collapsed,
        mapped.index(axis),
        tuple(sorted(batch.items())),
        tuple(map(int, numbers.offset_dims)),
        lax.GatherScatterMode.CLIP if fills else p["mode"],
        fill if fills else None,
        (False, False) if batch else (p["indices_are_sorted"], p["unique_indices"]),
    )


def rows_by_number(x: jax.Array, index: jax.Array, *, rows: Rows) -> jax.Array:
    """What a gather takes, its dimensions where they were."""
    axis, places = rows.axis, [at for _, at in rows.batch]
    if index.shape[-1] > 1:
        index = lax.slice_in_dim(index, rows.column, rows.column + 1, axis=index.ndim - 1)
    free = [at for at in range(index.ndim - 1) if at not in places]
    shape = tuple(index.shape[at] for at in free)
    order = (*places, *free, index.ndim - 1)
    column = index if order == tuple(range(index.ndim)) else lax.transpose(index, order)
    column = _reshaped(column, (*(x.shape[d] for d, _ in rows.batch), math.prod(shape), 1))
    along = (*(d for d, _ in rows.batch), axis)
    sides = sorted(range(len(along)), key=lambda at: along[at])
    if sides != list(range(len(along))):
        column = lax.transpose(column, (*sides, len(along)))
    along = tuple(sorted(along))
    taken = rows_of(x, column, axis, along, rows.mode, is_sorted=rows.hints[0], unique=rows.hints[1])
    if rows.fill is not None:
        number = lax.squeeze(column, (len(along),))
        if number.dtype.itemsize < 4:
            number = lax.convert_element_type(number, np.int32)  # the length may be more than it can hold
        inside = lax.bitwise_and(number >= 0, number < x.shape[axis])
        inside = lax.broadcast_in_dim(inside, taken.shape, along)
        taken = lax.select(inside, taken, lax.full_like(taken, rows.fill))
    own: list[Any] = []
    for d in range(x.ndim):
        own += [("index", dict(rows.batch)[d])] if d in dict(rows.batch) else []
        own += [("index", at) for at in free] + ["kept"] * rows.kept if d == axis else []
        own += [d] if d != axis and d not in dict(rows.batch) else []
    lengths = {("index", at): n for at, n in enumerate(index.shape[:-1])} | {"kept": 1}
    wide = _reshaped(taken, tuple(lengths.get(d, 0) or x.shape[d] for d in own))
    kept = iter([d for d in own if not isinstance(d, tuple)])
    new = iter(sorted(d for d in own if isinstance(d, tuple)))
    wanted = [own.index(next(kept) if d in rows.offsets else next(new)) for d in range(wide.ndim)]
    return wide if wanted == sorted(wanted) else lax.transpose(wide, wanted)


def _reshaped(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return x if x.shape == shape else lax.reshape(x, shape)
