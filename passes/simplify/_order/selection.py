"""Single entries from the middle of a sort, found by bisection."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Graph, Node
from lepton_jax.passes.simplify._order.sorts import along, is_chosen_from
from lepton_jax.rewrite import PassContext, erase_dead, profit, rewrite
from lepton_jax.rewrite.context import Level
from lepton_jax.rewrite.replacement import write, write_before

_NAME: Final = "entry-by-bisection"

_MOST_ENTRIES: Final = 12

_FEWEST: Final = 64
_LEAST_SIZE: Final = 2048
"""Entries in a row, and in all, from which counting is faster than sorting."""

_KEYS: Final = {"float32": 32, "bfloat16": 16, "float16": 16, "int32": 32, "int16": 16, "int8": 8}
"""How many bits the key of a number has."""


_FAR: Final = 30
"""To choose k of n 32-bit numbers takes longer than a bisection where k is more than n over this."""


def select_entries(graph: Graph, ctx: PassContext, level: Level | None, *, far: bool = False) -> None:
    """Medians, quantiles and other single entries of a sort, without sorting.

    sort(x)[k] → the smallest number that more than k entries do not exceed, found bit by bit: 32 counts
    for 32-bit numbers; the entry after it is the next larger number. The result is gathered from x, so the
    gradient goes to the entry that the sort would have put there. NaN is last and zeros of both signs are
    equal, as in a sort. Level `reassociate`, since of equal zeros and of NaN it may be another one. On a
    CPU, where sorts are slow, for up to twelve entries. 8× to 20× for medians of 4096
    (`python benchmarks/rewrites.py --only order`).

    Args:
        far: only entries so far from both ends that choosing all up to them would take longer.
    """
    if not ctx.allows("reassociate", level):
        return
    for sort in list(graph):
        if sort.op == "sort" and len(sort.operands) == 1 and is_chosen_from(sort):
            places = _places(sort)
            if far and not _are_far(sort, set(places.values())):
                continue
            if places and can_be_selected(sort, ctx) and ctx.fire(_NAME, sort):
                _select(sort, places)


def can_be_selected(sort: Node, ctx: PassContext) -> bool:
    """Whether single entries of a sort are found faster by bisection."""
    key = sort.operands[0]
    if ctx.rates.platform != "cpu" or key.dtype.name not in _KEYS or len(sort.operands) != 1:
        return False
    length = key.shape[int(sort.params["dimension"])]
    return profit.is_disregarded() or (length >= _FEWEST and key.aval.size >= _LEAST_SIZE)


def _places(sort: Node) -> dict[Node, int]:
    """Which entry each reader of a sort takes, if each takes one."""
    axis = int(sort.params["dimension"])
    if not sort.result.uses or len(sort.result.uses) > _MOST_ENTRIES:
        return {}
    found: dict[Node, int] = {}
    for reader, _ in sort.result.uses:
        if reader.op != "slice" or reader.context is not sort.context or reader.result.shape[axis] != 1:
            return {}
        found[reader] = int(reader.params["start_indices"][axis])
    return found


def _are_far(sort: Node, places: set[int]) -> bool:
    """Whether to find the entries at some places is faster than to choose all from an end up to them."""
    key = sort.operands[0]
    if not places or not key.is_static or key.dtype.name != "float32":
        return False
    length = int(key.shape[int(sort.params["dimension"])])
    chosen = max(min(place + 1, length - place) for place in places)
    bisections = sum(place - 1 not in places for place in places)
    return chosen * _FAR > length * bisections


def _select(sort: Node, places: dict[Node, int]) -> None:
    """Read the entries from what bisection finds, in front of the sort."""
    wanted = tuple(sorted(set(places.values())))
    made = rewrite(
        entries_at,
        sort.operands[0],
        axis=int(sort.params["dimension"]),
        places=wanted,
        is_stable=bool(sort.params["is_stable"]),
    )
    found = dict(zip(wanted, write_before(made, sort, _NAME), strict=True))
    for reader, place in places.items():
        p, axis = reader.params, int(sort.params["dimension"])
        start, limit, strides = list(p["start_indices"]), list(p["limit_indices"]), p["strides"]
        start[axis], limit[axis] = 0, 1
        part = (tuple(start), tuple(limit), None if strides is None else tuple(strides))
        write(rewrite(part_of, found[place], part=part), reader, _NAME)
        erase_dead(reader)


def part_of(x: jax.Array, *, part: tuple[Any, Any, Any]) -> jax.Array:
    """A slice of an array, or all of it."""
    whole = not any(part[0]) and part[1] == x.shape and (part[2] is None or set(part[2]) == {1})
    return x if whole else lax.slice(x, *part)


def entries_at(x: jax.Array, *, axis: int, places: tuple[int, ...], is_stable: bool) -> list[jax.Array]:
    """The entries that a sort along an axis puts at some places, in ascending order, each of length one."""
    keys, bits = ordered_keys(lax.stop_gradient(x))
    found: dict[int, jax.Array] = {}
    for place in places:
        if place - 1 in found:
            found[place] = _next(keys, found[place - 1], place, axis)
        else:
            found[place] = _bisected(keys, place, axis, bits)
    return [_taken(x, keys, found[place], place, axis, is_stable) for place in places]


def ordered_keys(x: jax.Array) -> tuple[jax.Array, int]:
    """Whole numbers that are ordered as a sort orders the entries of x, and how many bits they have."""
    bits = _KEYS[x.dtype.name]
    if jnp.issubdtype(x.dtype, np.integer):
        return x.astype(np.int32), bits
    x = lax.select(lax.eq(x, lax.full_like(x, 0)), lax.full_like(x, 0), x)
    x = lax.select(lax.ne(x, x), lax.full_like(x, np.nan), x)
    whole = lax.bitcast_convert_type(x, np.dtype(f"int{bits}")).astype(np.int32)
    turned = lax.bitwise_xor(whole, lax.full_like(whole, 2 ** (bits - 1) - 1))
    return lax.select(lax.lt(whole, lax.full_like(whole, 0)), turned, whole), bits


def _count(which: jax.Array, axis: int) -> jax.Array:
    return lax.expand_dims(lax.reduce_sum(which.astype(np.int32), (axis,)), (axis,))


def _bisected(keys: jax.Array, place: int, axis: int, bits: int) -> jax.Array:
    """The key at a place: the smallest that more than `place` of the keys do not exceed."""
    shape = tuple(1 if d == axis else n for d, n in enumerate(keys.shape))

    def step(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = (
            _count(lax.le(keys, lax.broadcast_in_dim(middle, keys.shape, range(keys.ndim))), axis) > place
        )
        return lax.select(enough, low, middle + 1), lax.select(enough, middle, high)

    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    bounds = (lax.full(shape, least, np.int32), lax.full(shape, most, np.int32))
    found: jax.Array = lax.fori_loop(0, bits, step, bounds)[0]
    return found


def _next(keys: jax.Array, before: jax.Array, place: int, axis: int) -> jax.Array:
    """The key at a place, from the key at the place before it."""
    wide = lax.broadcast_in_dim(before, keys.shape, range(keys.ndim))
    above = lax.select(lax.gt(keys, wide), keys, lax.full_like(keys, np.iinfo(np.int32).max))
    larger = lax.expand_dims(lax.reduce_min(above, (axis,)), (axis,))
    return lax.select(_count(lax.le(keys, wide), axis) > place, before, larger)


def _taken(
    x: jax.Array, keys: jax.Array, key: jax.Array, place: int, axis: int, is_stable: bool
) -> jax.Array:
    """The entry of x that has a key; of several in a stable sort the one that comes to be at the place."""
    wide = lax.broadcast_in_dim(key, keys.shape, range(keys.ndim))
    run = lax.broadcasted_iota(np.int32, keys.shape, axis)
    same = lax.eq(keys, wide)
    length = x.shape[axis]
    first = lax.select(same, run, lax.full_like(run, length - 1))
    row = lax.expand_dims(lax.reduce_min(first, (axis,)), (axis,))
    if is_stable:
        row = _later(same, run, row, place - _count(lax.lt(keys, wide), axis), axis)
    return along(x, row, axis)


def _later(same: jax.Array, run: jax.Array, row: jax.Array, after: jax.Array, axis: int) -> jax.Array:
    """Which of several equal entries comes after so many others of them."""

    def search(row: jax.Array) -> jax.Array:
        def step(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = (low + high) >> 1
            upto = lax.le(run, lax.broadcast_in_dim(middle, run.shape, range(run.ndim)))
            enough = _count(same & upto, axis) > after
            return lax.select(enough, low, middle + 1), lax.select(enough, middle, high)

        most = run.shape[axis] - 1
        found: jax.Array = lax.fori_loop(0, most.bit_length(), step, (row, lax.full_like(row, most)))[0]
        return found

    several = lax.reduce_max(after, tuple(range(after.ndim))) > 0
    found: jax.Array = lax.cond(several, search, lambda row: row, row)
    return found
