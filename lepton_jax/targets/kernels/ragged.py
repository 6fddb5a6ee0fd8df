"""Ragged products, as mixtures of experts have them, by loops over groups and tiles of rows.

XLA for CPUs multiplies all rows, with zeros in place of those of other groups, with the matrices of all
groups. These loops multiply the rows of each group with its own matrix alone: so many as a tile has at
once, and of the last tile keep what is the group's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir import _primitives

Array = jax.Array

_TILES: Final = ((24, 8), (64, 32))
"""(rows of a group, rows of a tile for groups that have fewer on average); `_TILE` where they have more."""

_TILE: Final = 64

_LEAST_OF_SUMS: Final = 32
"""Rows of a tile of sums, whose result is read and written once for each tile."""

_LONG: Final = 256
"""Rows for each group from which on tiles of bfloat16 are twice as long: before jax 0.11 XLA's library takes
60 µs to start on one."""

_LEAST_GROUPS: Final = 3
_CACHED: Final = 2**20
_READING: Final = (4, 40)
_COPYING: Final = 16
_CLEARING: Final = 64
"""What else takes as long as so many rows: reading a group's matrix, in JAX's form, where those of all
groups have at most `_CACHED` elements and where they have more; copying it; and, of sums, writing a group's
result."""

_GAIN: Final = 1.4
_LEAST_SAVED: Final = 2**20
"""How much faster the loop must look, and how many multiplications it must save, so that it is: as timed on
two cores from 1 to 2048 rows, 2 to 64 groups, and matrices from 32 × 32 to 1024 × 1024."""


def ragged_product(
    left: Array,
    right: Array,
    sizes: Array,
    numbers: lax.RaggedDotDimensionNumbers,
    precision: Any = None,
    dtype: Any = None,
) -> Array:
    """`lax.ragged_dot_general` of two dimensions, on one CPU by a loop over groups.

    On other platforms, several devices, under `vmap`, and where the loop does not pay, it is JAX's own. It
    has derivatives of any order, which are ragged products again.

    Args:
        left: [m, k], the rows of the first group first.
        right: [groups, k, n] or [groups, n, k]; or [m, n]: a product for each group, of its rows.
        sizes: integers[groups], how many rows each group has; the rest of the rows has no group.
        numbers: the dimension numbers of one of these three.
        precision: as `lax.dot_general` has it.
        dtype: of the result; None: as `lax.dot_general` has it.

    Returns:
        [m, n], zeros for rows without a group; or [groups, k, n], zeros for groups without rows.

    Example:
        >>> numbers = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))
        >>> rows, weights = jnp.ones((3, 2)), jnp.ones((2, 2, 1))
        >>> ragged_product(rows, weights, jnp.array([1, 1]), numbers).ravel().tolist()
        [2.0, 2.0, 0.0]
    """
    return _primitives.ragged_product(left, right, sizes, numbers, precision, dtype, by_group)


def by_group(left: Array, right: Array, sizes: Array, *, dtype: Any, **how: Any) -> Any:
    """The product by a loop over the groups that have rows, or NotImplemented where that does not pay.

    Args:
        left: as `ragged_product` has it, as all arguments.
        right: the same.
        sizes: the same; a group ends no later than the last row, and no earlier than the one before it.
        dtype: of the result.
        how: `numbers` and `precision`.
    """
    if not pays(left.shape, right.shape, sizes.shape[0], left.dtype):
        return NotImplemented
    made = sums_by_group if right.ndim == 2 else rows_by_group
    tile = tile_of(left.shape, right.shape, sizes.shape[0], left.dtype)
    return made(left, right, sizes, tile=tile, dtype=dtype, **how)


def pays(left: Sequence[int], right: Sequence[int], groups: int, dtype: Any) -> bool:
    """Whether the loop is faster than JAX's form for operands of these shapes, whatever the sizes are.

    At the most each group that has rows has one tile that is not full.
    """
    rows, some = left[0], min(groups, left[0])
    if groups < _LEAST_GROUPS or 0 in (*left, *right):
        return False
    are_sums = len(right) == 2
    width = left[1] * right[1] if are_sums else right[1] * right[2]
    reading = _READING[not are_sums and groups * width > _CACHED]
    whole = groups * (rows + reading)
    mine = rows + some * (tile_of(left, right, groups, dtype) - 1)
    mine += groups * _CLEARING if are_sums else some * _COPYING
    return mine * _GAIN <= whole and (whole - mine) * width >= _LEAST_SAVED


def tile_of(left: Sequence[int], right: Sequence[int], groups: int, dtype: Any) -> int:
    """How many rows are multiplied at once, by how many a group has on average."""
    each = left[0] / groups
    longest = 2 * _TILE if each >= _LONG and dtype == jnp.bfloat16 else _TILE
    tile = next((tile for least, tile in _TILES if each < least), longest)
    return min(tile if len(right) > 2 else max(tile, _LEAST_OF_SUMS), left[0])


def rows_by_group(
    rows: Array,
    weights: Array,
    sizes: Array,
    *,
    tile: int,
    numbers: lax.RaggedDotDimensionNumbers,
    precision: Any,
    dtype: Any,
) -> Array:
    """The product of the rows of each group with the group's matrix.

    Args:
        rows: [m, k].
        weights: [groups, k, n] or [groups, n, k].
        sizes: integers[groups].
        tile: rows that are multiplied at once, at most m.
        numbers: say which of the two.
        precision: of the products.
        dtype: of the result.

    Returns:
        [m, n].
    """
    count = rows.shape[0]
    ends = _ends(sizes, count)
    summed = numbers.dot_dimension_numbers[0][1][0] - 1
    dims = (((1,), (summed,)), ((), ()))

    def group(state: tuple[Array, Array]) -> tuple[Array, Array]:
        first, found = state
        mine = jnp.sum(ends <= first, dtype=jnp.int32)  # the next group that has rows
        matrix = lax.dynamic_index_in_dim(weights, mine, keepdims=False)
        last = lax.dynamic_index_in_dim(ends, mine, keepdims=False)

        def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
            at, found = state
            low, is_mine = _tile_at(at, last, tile, count)
            x = lax.dynamic_slice_in_dim(rows, low, tile)
            y = lax.dot_general(x, matrix, dims, precision=precision, preferred_element_type=dtype)
            y = jnp.where(is_mine, y, lax.dynamic_slice_in_dim(found, low, tile))
            return at + tile, lax.dynamic_update_slice_in_dim(found, y, low, 0)

        return last, lax.while_loop(lambda s: s[0] < last, step, (first, found))[1]

    begin = jnp.zeros((), jnp.int32), jnp.zeros((count, weights.shape[2 - summed]), dtype)
    result: Array = lax.while_loop(lambda s: s[0] < ends[-1], group, begin)[1]
    return result


def sums_by_group(
    left: Array, right: Array, sizes: Array, *, tile: int, numbers: Any, precision: Any, dtype: Any
) -> Array:
    """For each group the product of its rows, transposed, with its rows: the derivative of the weights.

    Args:
        left: [m, k].
        right: [m, n].
        sizes: integers[groups].
        tile: rows that are multiplied at once, at most m.
        numbers: there is one form of it.
        precision: of the products.
        dtype: of the result; halves are added up in float32.

    Returns:
        [groups, k, n].
    """
    count = left.shape[0]
    ends = _ends(sizes, count)
    dims = (((0,), (0,)), ((), ()))
    wide = jnp.promote_types(dtype, jnp.float32)

    def group(state: tuple[Array, Array]) -> tuple[Array, Array]:
        first, found = state
        mine = jnp.sum(ends <= first, dtype=jnp.int32)
        last = lax.dynamic_index_in_dim(ends, mine, keepdims=False)

        def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
            at, total = state
            low, is_mine = _tile_at(at, last, tile, count)
            x, y = (
                jnp.where(is_mine, lax.dynamic_slice_in_dim(a, low, tile), jnp.zeros((), a.dtype))
                for a in (left, right)
            )
            more = lax.dot_general(x, y, dims, precision=precision, preferred_element_type=wide)
            return at + tile, total + more

        total = jnp.zeros((left.shape[1], right.shape[1]), wide)
        _, total = lax.while_loop(lambda s: s[0] < last, step, (first, total))
        return last, lax.dynamic_update_index_in_dim(found, total.astype(dtype), mine, 0)

    shape = (sizes.shape[0], left.shape[1], right.shape[1])
    begin = jnp.zeros((), jnp.int32), jnp.zeros(shape, dtype)
    result: Array = lax.while_loop(lambda s: s[0] < ends[-1], group, begin)[1]
    return result


def _ends(sizes: Array, count: int) -> Array:
    """Where each group ends, in order whatever the sizes are, so that loops over them end."""
    return lax.cummax(jnp.minimum(jnp.cumsum(sizes.astype(jnp.int32)), count))


def _tile_at(at: Array, last: Array, tile: int, count: int) -> tuple[Array, Array]:
    """Where the tile begins that has the rows from `at` on, and which of its rows come before `last`."""
    low = jnp.minimum(at, count - tile)
    places = low + jnp.arange(tile, dtype=jnp.int32)
    return low, ((places >= at) & (places < last))[:, None]
