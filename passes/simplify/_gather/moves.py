"""The replacements: rows taken by index, and rows added up by index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def take_rows(
    table: jax.Array, index: jax.Array, axis: int, offset: int, batch: Sequence[int] = ()
) -> jax.Array:
    """The slices of a table at the index, zero where the index is no position along the axis.

    Args:
        table: any shape.
        index: whole numbers; its first dimensions go with the table's `batch` dimensions.
        offset: where the table's other dimensions stand in the result; around them those of the index.
        batch: dimensions of the table that go with the index's first ones.
    """
    rest = [d for d in range(table.ndim) if d != axis and d not in batch]
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(offset, offset + len(rest))),
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
        operand_batching_dims=tuple(batch),
        start_indices_batching_dims=tuple(range(len(batch))),
    )
    if list(batch) != sorted(batch):
        order = sorted(range(len(batch)), key=lambda i: batch[i])
        numbers = numbers._replace(
            operand_batching_dims=tuple(batch[i] for i in order), start_indices_batching_dims=tuple(order)
        )
    sizes = tuple(1 if d == axis or d in batch else n for d, n in enumerate(table.shape))
    return lax.gather(
        table,
        lax.expand_dims(index, (index.ndim,)),
        numbers,
        sizes,
        mode=lax.GatherScatterMode.FILL_OR_DROP,
        fill_value=0,
    )


def add_rows(rows: jax.Array, index: jax.Array, count: int, dtype: Any) -> jax.Array:
    """For each of `count` classes the sum of the rows whose index it is; others are left out.

    Args:
        rows: the dimensions of the index, then those of a row.
        dtype: of the result; narrow floating numbers are added up in float32.
    """
    wide = jnp.float32 if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32 else dtype
    shape = rows.shape[index.ndim :]
    flat = lax.reshape(rows, (math.prod(index.shape), *shape)).astype(wide)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(1, flat.ndim)),
        inserted_window_dims=(0,),
        scatter_dims_to_operand_dims=(0,),
    )
    total = lax.scatter_add(
        jnp.zeros((count, *shape), wide),
        lax.reshape(index, (math.prod(index.shape), 1)),
        flat,
        numbers,
        mode=lax.GatherScatterMode.FILL_OR_DROP,
    )
    return total.astype(dtype)


def is_position(index: jax.Array, length: int) -> jax.Array:
    """Where an index is a position along an axis of this length."""
    info = jnp.iinfo(index.dtype)
    inside = jnp.full(index.shape, True) if info.min == 0 else lax.ge(index, jnp.zeros_like(index))
    return inside if length > info.max else inside & lax.lt(index, jnp.full_like(index, length))
