"""Sorts of which only the first or last entries are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes.simplify._movement.common import is_plain
from lepton_jax.passes.simplify._movement.slices import strides_of
from lepton_jax.rewrite import PassContext, erase_dead, profit, rewrite
from lepton_jax.rewrite.context import Level
from lepton_jax.rewrite.replacement import write, write_before

MOST_PART: Final = 8
"""Up to one entry in so many, choosing is faster than sorting."""

_MOST_READERS: Final = 16

_NAME: Final = "part-of-sort"

Fold = Callable[[jax.Array, tuple[int, ...]], jax.Array]

Part = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]
"""Start, limit and strides of a slice."""

_FAST: Final = frozenset({"float32", "bfloat16"})
"""What XLA's CPU backend chooses from without sorting everything."""


class Picked(NamedTuple):
    """The entries of a sort that some readers want: `number` of them, the first or the last."""

    axis: int
    number: int
    last: bool
    readers: tuple[Node, ...]


def choose_entries(graph: Graph, ctx: PassContext, level: Level | None) -> None:
    """The beginning or the end of each sort or argsort, without sorting.

    sort(x)[:k] → the entries of x that top_k chooses, argsort(x)[:k] → their numbers, and the same of
    the last k, or of both; for one entry argmin and argmax. Equal entries keep the order of the stable sort,
    zeros of both signs are equal, and NaN is last as in a sort; only where a row has fewer
    finite entries than are read may infinities and NaN among them change places. Level `reassociate`. Up to
    an eighth of the entries; on a CPU for the dtypes that XLA has a fast top_k for.
    60× for 8 of 4096 (`python benchmarks/rewrites.py --only order`).
    """
    if not ctx.allows("reassociate", level):
        return
    for sort in list(graph):
        if sort.op != "sort" or not is_chosen_from(sort):
            continue
        ends = _ends(sort)
        if not ends:
            continue
        most = max(picked.number for picked in ends)
        if not all(_pays(sort.operands[0], picked, ctx) for picked in ends):
            ctx.miss(_NAME, sort, f"{most} entries are too many to choose without sorting")
        elif ctx.fire(_NAME, sort):
            for picked in ends:
                _choose(sort, picked, ctx.rates.platform)


def is_chosen_from(sort: Node) -> bool:
    """Whether a sort by one key may be replaced."""
    key = sort.operands[0]
    ordered = jnp.issubdtype(key.dtype, np.integer) or (
        jnp.issubdtype(key.dtype, np.floating) and key.dtype.itemsize > 1
    )
    plain = sort.params["num_keys"] == 1 and all(v.is_static for v in sort.operands)
    return bool(ordered) and plain and _is_unplaced(sort)


def _is_unplaced(sort: Node) -> bool:
    """Whether no array in it knows of a mesh."""
    return all(is_plain(v) for v in (*sort.operands, *sort.results))


def _ends(sort: Node) -> list[Picked]:
    """What the readers of a sort want of its beginning and of its end; nothing if any wants the middle."""
    axis = int(sort.params["dimension"]) % sort.operands[0].ndim
    length = sort.operands[0].shape[axis]
    readers = [node for value in sort.results for node, _ in value.uses]
    if not readers or len(readers) > _MOST_READERS:
        return []
    if any(reader.op != "slice" or reader.context is not sort.context for reader in readers):
        return []
    stops = {reader: int(reader.params["limit_indices"][axis]) for reader in readers}
    lasts = {reader: length - int(reader.params["start_indices"][axis]) for reader in readers}
    low = tuple(reader for reader in readers if 2 * stops[reader] <= length)
    high = tuple(reader for reader in readers if reader not in low)
    if any(2 * lasts[reader] > length for reader in high):
        return []
    ends = [Picked(axis, max(stops[r] for r in low), False, low)] if low else []
    ends += [Picked(axis, max(lasts[r] for r in high), True, high)] if high else []
    return ends if all(picked.number > 0 for picked in ends) else []


def _pays(key: Value, picked: Picked, ctx: PassContext) -> bool:
    length = key.shape[picked.axis]
    if picked.number == 1 or profit.is_disregarded():
        return bool(length > 1)
    fast = ctx.rates.platform != "cpu" or key.dtype.name in _FAST
    return fast and bool(picked.number * MOST_PART <= length) and not jnp.issubdtype(key.dtype, np.integer)


def _choose(sort: Node, picked: Picked, platform: str) -> None:
    key, first, axis = sort.operands[0], 0, picked.axis
    if picked.last:
        first = key.shape[axis] - picked.number
    values = not any(result.uses for result in sort.results[1:])
    rows: Value | None = None
    for operand, result in zip(list(sort.operands), list(sort.results), strict=True):
        for reader in [user for user in result.users() if user in picked.readers]:
            part = _moved(reader, axis, first)
            if picked.number == 1 and operand is key:
                made = rewrite(
                    extreme, key, axis=axis, last=picked.last, part=part, careful=platform == "cpu"
                )
            else:
                rows = _rows(sort, picked, values) if rows is None else rows
                counts = _counted(operand, key, axis)
                others = () if counts is not None else (operand,)
                made = rewrite(entries, rows, *others, counts=counts, axis=axis, part=part)
            write(made, reader, _NAME)
            erase_dead(reader)


def _rows(sort: Node, picked: Picked, values: bool) -> Value:
    """Where the entries come from, computed in front of the sort."""
    made = rewrite(
        numbers_of,
        sort.operands[0],
        axis=picked.axis,
        count=picked.number,
        last=picked.last,
        values=values,
    )
    return write_before(made, sort, _NAME)[0]


def _counted(operand: Value, key: Value, axis: int) -> tuple[int, int] | None:
    """Start and step of numbers along the axis."""
    run = facts_of(operand).iota if operand is not key and operand.dtype == np.int32 else None
    return None if run is None or run[0] != axis else (run[1], run[2])


def _moved(reader: Node, axis: int, first: int) -> Part:
    """The bounds of a slice, counted from `first` along an axis."""
    start, limit = list(reader.params["start_indices"]), list(reader.params["limit_indices"])
    start[axis] -= first
    limit[axis] -= first
    strides = strides_of(reader)
    return tuple(start), tuple(limit), None if all(s == 1 for s in strides) else strides


def entries(
    rows: jax.Array, *others: jax.Array, counts: tuple[int, int] | None, axis: int, part: Part
) -> jax.Array:
    """A part of the entries of an array at `rows`; of the numbers start + step · row where there is none."""
    if counts is not None:
        start, step = (np.int32(number) for number in counts)
        found = rows if step == 1 else lax.mul(rows, step)
        found = found if start == 0 else lax.add(found, start)
    else:
        found = along(others[0], rows, axis)
    return found if _is_whole(found, part) else lax.slice(found, *part)


def folded_with_nan(x: jax.Array, fold: Fold, axis: int) -> jax.Array:
    """The largest or smallest along an axis, NaN where there is one, whatever `fold` makes of it.

    XLA's CPU backend gives the work to a library that passes over NaN. A sum of magnitudes cannot.
    """
    found = fold(x, (axis,))
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return found
    total = lax.reduce_sum(lax.abs(x), (axis,))
    return lax.select(lax.ne(total, total), lax.full_like(found, np.nan), found)


def extreme(x: jax.Array, *, axis: int, last: bool, part: Part, careful: bool) -> jax.Array:
    """The last or first entry of a sort along an axis, NaN being last, and a part of that.

    Args:
        careful: whether the backend's maximum may lose NaN.
    """
    if last and careful:
        found = folded_with_nan(x, lax.reduce_max, axis)
    elif last or not jnp.issubdtype(x.dtype, jnp.floating):
        found = (lax.reduce_max if last else lax.reduce_min)(x, (axis,))
    else:
        found = lax.reduce_min(lax.select(lax.ne(x, x), lax.full_like(x, np.inf), x), (axis,))
        some = lax.squeeze(lax.slice_in_dim(x, 0, 1, axis=axis), (axis,))
        unknown = lax.bitwise_and(lax.eq(found, lax.full_like(found, np.inf)), lax.ne(some, some))
        found = lax.select(unknown, some, found)
    found = lax.expand_dims(found, (axis,))
    return found if _is_whole(found, part) else lax.slice(found, *part)


def _is_whole(x: jax.Array, part: Part) -> bool:
    return x.shape == tuple(b - a for a, b in zip(part[0], part[1], strict=True)) and part[2] is None


def numbers_of(key: jax.Array, *, axis: int, count: int, last: bool, values: bool) -> jax.Array:
    """Where the first or last `count` entries of a stable sort come from, along `axis`.

    Where only `values` are wanted, equal entries may stand for one another, zeros of both signs too.
    """
    length = key.shape[axis]
    turned = last and not values
    if turned:
        key = lax.rev(key, (axis,))  # the last of equals comes first
    ordered = _comparable(key, last, zeros=count > 1 and not values)
    if count == 1:
        choose = lax.argmax if last else lax.argmin
        found = lax.expand_dims(choose(ordered, axis, np.int32), (axis,))
    else:
        found = _top(ordered if last else lax.neg(ordered), axis, count)
    if last and count > 1:
        found = lax.rev(found, (axis,))
    return lax.sub(np.int32(length - 1), found) if turned else found


def _comparable(key: jax.Array, last: bool, zeros: bool) -> jax.Array:
    """Keys for choosing: one zero, and NaN above all else."""
    if not jnp.issubdtype(key.dtype, jnp.floating):
        return key
    if zeros:
        key = lax.select(lax.eq(key, lax.full_like(key, 0)), lax.full_like(key, 0 if last else -0.0), key)
    return lax.select(lax.ne(key, key), lax.full_like(key, np.nan if last else np.inf), key)


def _top(key: jax.Array, axis: int, count: int) -> jax.Array:
    found: jax.Array = lax.top_k(jnp.moveaxis(key, axis, -1), count)[1]
    return jnp.moveaxis(found, -1, axis)


def along(x: jax.Array, rows: jax.Array, axis: int) -> jax.Array:
    """The entries of `x` at `rows` along `axis`, for each index of the other dimensions."""
    others = tuple(d for d in range(x.ndim) if d != axis)
    places = tuple(d for d in range(rows.ndim) if d != axis)
    return lax.gather(
        x,
        lax.expand_dims(rows, (rows.ndim,)),
        lax.GatherDimensionNumbers(
            offset_dims=(),
            collapsed_slice_dims=(axis,),
            start_index_map=(axis,),
            operand_batching_dims=others,
            start_indices_batching_dims=places,
        ),
        (1,) * x.ndim,
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
