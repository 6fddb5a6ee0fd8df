"""Rows that a loop reads and writes one after the other: scanned inputs and stacked outputs."""

from __future__ import annotations

from typing import Any

from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._counted.behind import hand_on_rows
from lepton_jax.passes.loops._counted.places import Place, Places, known_number, step_of
from lepton_jax.passes.loops._counted.starts import Written, is_inside, starts_of
from lepton_jax.passes.loops._parts.scan import (
    Scan,
    add_scanned,
    add_stacked,
    drop_carry,
    drop_unread,
    write_after,
)
from lepton_jax.passes.loops._parts.worth import DOTS
from lepton_jax.rewrite import PassContext, erase_dead, profit, rewrite
from lepton_jax.rewrite.replacement import write_before

READ = "indexed-input"
WRITTEN = "indexed-output"
_LONG_COLUMN = 64
COPIES = "copying rows for the loop takes longer on a CPU than reading them where they are"


def counters(scan: Scan) -> Places:
    """The carries of a scan that count from a known number."""
    found: dict[Value, Place] = {}
    for carry, after, init in zip(scan.carries, scan.next, scan.init, strict=True):
        by = step_of(carry, after)
        first = None if by is None else known_number(init)
        if by is not None and first is not None:
            found[carry] = (first, by)
    return Places(found, scan.length)


def scan_rows(node: Node, ctx: PassContext) -> None:
    """x[i] with the number i of the iteration is a scanned input.

    scan((i, c): (i + 1, f(c, x[i]))) → scan(c, row: f(c, row)) over x

    So are x[i + k] and x[n - i], along any axis, where every iteration stays inside of the array. On a CPU
    only where no rows are copied for it, or the loop has a product that other passes may take out.
    """
    scan = Scan(node)
    if not any(n.op == "dynamic_slice" for n in scan.body):
        return
    places = counters(scan)
    for reader in list(scan.body):
        if reader.op != "dynamic_slice" or reader.operands[0] not in scan.consts:
            continue
        starts = starts_of(reader.operands[1:], reader.params["slice_sizes"], places, reader.operands[0])
        if starts is None:
            continue
        if _copies(scan, *starts[:2], reader.operands[0], ctx):
            ctx.miss(READ, reader, COPIES)
            continue
        if not ctx.fire(READ, reader):
            continue
        _scan_over(node, reader, scan.outer[reader.operands[0]], starts)
    drop_unread(node)


def _scan_over(node: Node, reader: Node, source: Value, starts: tuple[int, Place, tuple[int, ...]]) -> None:
    """Let a loop scan over the slices that a node of its body reads.

    Args:
        source: what it reads from, outside.
        starts: where, as `starts_of` has it.
    """
    axis, place, others = starts
    length: int = node.params["length"]
    sizes = tuple(reader.params["slice_sizes"])
    made = rewrite(
        rows, source, axis=axis, place=_in_memory(place, node), length=length, starts=others, sizes=sizes
    )
    (outer,) = write_before(made, node, READ)
    after = reader.next
    assert after is not None
    (row,) = write_before(rewrite(_without_axis, reader.result, axis=axis), after, READ)
    (found,) = write_before(rewrite(_with_axis, add_scanned(node, outer, row), axis=axis), reader, READ)
    reader.result.replace_uses(found)
    assert row.node is not None
    erase_dead(row.node)
    erase_dead(reader)


def _without_axis(x: Any, *, axis: int) -> Any:
    return lax.squeeze(x, (axis,))


def _with_axis(x: Any, *, axis: int) -> Any:
    return lax.expand_dims(x, (axis,))


def rows(
    x: Any, *, axis: int, place: Place, length: int, starts: tuple[int, ...], sizes: tuple[int, ...]
) -> Any:
    """The slices of all iterations, stacked, without the axis along which they follow one another.

    Args:
        axis: this axis, along which each has size 1.
        place: the first, and 1 or -1.
        starts: where they begin along every axis; that of `axis` is not looked at.
        sizes: their shape.
    """
    first, by = place
    low = first if by == 1 else first - length + 1
    begin = [low if d == axis else s for d, s in enumerate(starts)]
    end = [low + length if d == axis else s + n for d, (s, n) in enumerate(zip(starts, sizes, strict=True))]
    found = lax.slice(x, begin, end)
    if by == -1:
        found = lax.rev(found, (axis,))
    order = (axis, *(d for d in range(x.ndim) if d != axis))
    return lax.transpose(found, order)


def stack_rows(node: Node, ctx: PassContext) -> None:
    """out[i] ← y in iteration i is a stacked output.

    scan((i, out): (i + 1, out.at[i].set(y))) → scan(…: y)

    Holds where nothing reads `out` in the loop, but for rows that were written a few iterations before,
    which become carries; rows that no iteration writes stay.
    """
    position = 0
    while position < node.params["num_carry"]:
        if not _stack_rows(node, position, ctx):
            position += 1


def _stack_rows(node: Node, position: int, ctx: PassContext) -> bool:
    scan = Scan(node)
    out, after = scan.carries[position], scan.next[position]
    writer = after.node
    if writer is None or writer.op not in _WRITERS or writer.operands[0] is not out:
        return False
    if list(after.uses) != [(scan.body.ret, position)]:
        return False
    places = counters(scan)
    found = _WRITERS[writer.op](writer, places)
    if found is None or found[0].is_const:
        return False
    update, axis, place = found
    if _copies(scan, axis, place, out, ctx):
        ctx.miss(WRITTEN, writer, COPIES)
        return False
    if len(out.uses) > 1:
        _read_ahead(node, out, axis, place, places, ctx)
    if len(out.uses) > 1:
        if writer.op == "scatter-add" or not hand_on_rows(node, out, writer, found, places, ctx):
            return False
        scan = Scan(node)
    if not ctx.fire(WRITTEN, writer):
        return False
    ys = scan.result_of(update) or add_stacked(node, update)
    made = rewrite(
        written,
        scan.init[position],
        ys,
        axis=axis,
        place=_in_memory(place, node),
        add=writer.op == "scatter-add",
    )
    (whole,) = write_after(made, node, WRITTEN)
    node.results[position].replace_uses(whole)
    drop_carry(node, position)
    drop_unread(node)
    return True


def _read_ahead(node: Node, out: Value, axis: int, place: Place, places: Places, ctx: PassContext) -> None:
    """What is read of an array before the loop writes there is what was in it at first.

    scan((i, out): (i + 1, out.at[i].set(f(out[i])))) → scan(row: f(row)) over out

    Args:
        out: the carry that is written.
        axis: the axis along which rows are written.
        place: where.
    """
    source = Scan(node).init[Scan(node).carries.index(out)]
    for reader, position in list(out.uses):
        if reader.op != "dynamic_slice" or position != 0:
            continue
        starts = starts_of(reader.operands[1:], tuple(reader.params["slice_sizes"]), places, out)
        if starts is None or starts[0] != axis or starts[1][1] != place[1]:
            continue
        if (place[0] - starts[1][0]) * place[1] > 0 or _copies(Scan(node), *starts[:2], out, ctx):
            continue
        if ctx.fire(READ, reader):
            _scan_over(node, reader, source, starts)


def written(out: Any, ys: Any, *, axis: int, place: Place, add: bool) -> Any:
    """An array with the rows of all iterations in it.

    Args:
        ys: the rows, stacked; with or without a place for `axis`.
        axis: the axis along which they follow one another.
        place: the first, and 1 or -1.
        add: whether they are added to what is there.
    """
    length = ys.shape[0]
    if ys.ndim > out.ndim:
        ys = lax.squeeze(ys, (axis + 1,))
    order = [d + 1 for d in range(axis)] + [0] + list(range(axis + 1, out.ndim))
    ys = lax.transpose(ys, order)
    first, by = place
    if by == -1:
        ys = lax.rev(ys, (axis,))
    low = first if by == 1 else first - length + 1
    if add:
        old = lax.slice_in_dim(out, low, low + length, axis=axis)
        ys = old + ys
    if length == out.shape[axis]:
        return ys
    return lax.dynamic_update_slice_in_dim(out, ys, low, axis)


def _copies(scan: Scan, axis: int, place: Place, array: Value, ctx: PassContext) -> bool:
    """Whether rows would be copied to no purpose: those of a part of an array, or the other way round.

    A loop with a product may lose the product to another pass, and long columns are read faster as rows.
    """
    if ctx.rates.platform != "cpu" or profit.is_disregarded():
        return False
    if any(node.op in DOTS for node in scan.body.walk()):
        return False
    if _in_memory(place, scan.node) != (0, 1) or array.shape[axis] != scan.length:
        return True
    return axis > 0 and array.aval.size < _LONG_COLUMN * scan.length


def _in_memory(place: Place, node: Node) -> Place:
    """A place by the position in memory instead of the iteration: the other way round for `reverse`."""
    if not node.params["reverse"]:
        return place
    first, by = place
    return first + by * (node.params["length"] - 1), -by


def _update_slice(writer: Node, places: Places) -> Written | None:
    out, update, *indices = writer.operands
    starts = starts_of(indices, tuple(update.shape), places, out)
    if starts is None or any(
        n != m for d, (n, m) in enumerate(zip(update.shape, out.shape, strict=True)) if d != starts[0]
    ):
        return None
    return update, starts[0], starts[1]


def _scatter(writer: Node, places: Places) -> Written | None:
    out, index, update = writer.operands
    numbers = writer.params["dimension_numbers"]
    plain = (
        index.shape == (1,)
        and update.shape == out.shape[1:]
        and tuple(numbers.update_window_dims) == tuple(range(out.ndim - 1))
        and tuple(numbers.inserted_window_dims) == (0,) == tuple(numbers.scatter_dims_to_operand_dims)
        and not numbers.operand_batching_dims
    )
    place = places.of(index) if plain else None
    if place is None or not is_inside(place, places.length, out.shape[0]):
        return None
    return update, 0, place


_WRITERS: dict[str, Any] = {
    "dynamic_update_slice": _update_slice,
    "scatter": _scatter,
    "scatter-add": _scatter,
}
