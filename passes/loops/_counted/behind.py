"""Rows that a loop reads some iterations after it has written them: carries."""

from __future__ import annotations

from typing import Any, Final

from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._counted.places import Place, Places
from lepton_jax.passes.loops._counted.starts import Written, starts_of
from lepton_jax.passes.loops._parts.scan import Scan, add_carry
from lepton_jax.rewrite import PassContext, erase_dead, rewrite
from lepton_jax.rewrite.replacement import write_before

RULE: Final = "row-behind"

_FARTHEST: Final = 4


def hand_on_rows(
    node: Node, out: Value, writer: Node, written: Written, places: Places, ctx: PassContext
) -> bool:
    """What is read of an array that a loop writes row by row is handed on instead.

    scan((i, out): (i + 1, out.at[i].set(f(out[i - 1])))) →
    scan((i, out, h): (i + 1, out.at[i].set(f(h)), f(h)))

    Holds where every read is of the whole row that was written up to four iterations before.

    Args:
        out: the carry that is written.

    Returns:
        Whether nothing but the writer reads the array.
    """
    update, axis, place = written
    readers = [(user, position) for user, position in out.uses if user is not writer]
    lags = {user: _lag(user, position, out, axis, place, places) for user, position in readers}
    if not readers:
        return True
    if any(lag is None for lag in lags.values()) or not ctx.fire(RULE, writer):
        return False
    shape = tuple(1 if d == axis else n for d, n in enumerate(out.shape))
    rows = _carried(node, out, update, shape, axis, place, max(lag for lag in lags.values() if lag))
    for reader, lag in lags.items():
        assert lag is not None
        reader.result.replace_uses(rows[lag - 1])
        erase_dead(reader)
    return True


def _lag(reader: Node, position: int, out: Value, axis: int, place: Place, places: Places) -> int | None:
    """How many iterations after it was written a row is read."""
    if reader.op != "dynamic_slice" or position != 0:
        return None
    sizes = tuple(reader.params["slice_sizes"])
    if any(n != m for d, (n, m) in enumerate(zip(sizes, out.shape, strict=True)) if d != axis):
        return None
    found = starts_of(reader.operands[1:], sizes, places, out)
    if found is None or found[0] != axis or found[1][1] != place[1]:
        return None
    lag = (place[0] - found[1][0]) * place[1]
    return lag if 1 <= lag <= _FARTHEST else None


def _carried(
    node: Node, out: Value, update: Value, shape: tuple[int, ...], axis: int, place: Place, most: int
) -> list[Value]:
    """New carries: the rows that were written one iteration before, two, and so on."""
    start = Scan(node).init[Scan(node).carries.index(out)]
    ret = node.regions[0].ret
    (new,) = write_before(rewrite(_as_row, update, shape=shape), ret, RULE)
    rows: list[Value] = []
    for lag in range(1, most + 1):
        first = place[0] - lag * place[1]
        (init,) = write_before(rewrite(_row, start, axis=axis, at=first), node, RULE)
        rows.append(add_carry(node, init, new))
        new = rows[-1]
    return rows


def _as_row(x: Any, *, shape: tuple[int, ...]) -> Any:
    return lax.reshape(x, shape)


def _row(x: Any, *, axis: int, at: int) -> Any:
    return lax.slice_in_dim(x, at, at + 1, axis=axis)
