"""What is done to whole rows after the blocks: other shifts, divisions, gates, and rows that see nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Value
from lepton_jax.passes.fuse._attention.bands import band_of
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.fuse._attention.plan import Plan
from lepton_jax.passes.fuse._attention.running import State, along, safe

SHIFT: Final = "shift"
"""What the program subtracts from the scores."""

OTHER: Final = "other"
"""What it subtracts from them before other exponentials are summed."""

COUNTED: Final = "counted"
"""A mask of what is summed."""


@dataclass(frozen=True)
class Thin:
    """An array with a number, or a mask of keys, for each row; hashable.

    Attributes:
        kind: what is done with it: that of a `Row`, or one of those above.
        places: which axes of the scores its axes are; None where there is no array.
        negated: whether a mask is True where a key is not seen.
    """

    kind: str
    places: tuple[int, ...] | None
    negated: bool = False

    def spread(self, x: Any, plan: Plan) -> Any:
        """The array with the axes of the scores and one key."""
        assert self.places is not None
        shape = [1] * len(plan.shape)
        for place, length in zip(self.places, x.shape, strict=True):
            shape[place] = length
        x = lax.reshape(x, shape)
        if x.dtype == bool:
            seen = lax.reduce_or(lax.bitwise_not(x) if self.negated else x, (plan.key,))
            x = lax.expand_dims(seen, (plan.key,))
        else:
            x = x.astype(plan.wide)
        full = [1 if d == plan.key else n for d, n in enumerate(plan.shape)]
        return lax.broadcast_in_dim(x, full, range(len(full)))


def thin_of(found: Found) -> list[tuple[Thin, Value | None]]:
    """What the rows of an attention go through, in order, after what is subtracted from the scores."""
    made: list[tuple[Thin, Value | None]] = []
    if found.shift is not None and found.top is None:
        made.append(_thin(SHIFT, found.shift, found))
    made += [_thin(OTHER, value, found) for _, value in found.others]
    for mask, negated in found.counted_masks:
        if not _all_seen(mask, negated, found):
            made.append(_thin(COUNTED, mask, found, negated))
    for row in found.rows:
        if row.value is None:
            made.append((Thin(row.kind, None), None))
        elif row.kind != "seen" or not _all_seen(row.value, row.negated, found):
            made.append(_thin(row.kind, row.value, found, row.negated))
    return made


def _thin(kind: str, value: Value, found: Found, negated: bool = False) -> tuple[Thin, Value]:
    """A value without what a broadcast repeats."""
    places = tuple(range(found.scores.ndim)) if value.ndim else ()
    while value.node is not None and value.op == "broadcast_in_dim" and value.ndim:
        (operand,) = value.node.operands
        places = tuple(places[int(d)] for d in value.node.params["broadcast_dimensions"])
        value = operand
    return Thin(kind, places, negated), value


def _all_seen(mask: Value, negated: bool, found: Found) -> bool:
    """Whether a mask is known to let each query see a key."""
    band = band_of(mask, found.labels, negated)
    if band is None:
        return False
    queries, keys = found.size
    row = np.arange(queries)
    return bool((np.maximum(row + band[0], 0) <= np.minimum(row + band[1], keys - 1)).all())


def as_subtracted(plan: Plan, state: State, dtype: Any) -> State:
    """What the blocks gave, with the maxima that the program has, of fewer bits, subtracted from the scores.

    The backward half subtracts these from scores of more bits: a sum for other maxima would not fit to it.
    """
    mixed, top, total = state
    if plan.shift != "top" or top.dtype == dtype:
        return state
    rounded = top.astype(dtype).astype(top.dtype)
    back = jnp.exp(safe(top) - safe(rounded))
    return mixed if plan.divided else mixed * along(back, plan, mixed.ndim), rounded, total * back


def finished(plan: Plan, state: State, thins: Sequence[Thin], arrays: Sequence[Any]) -> list[Any]:
    """The product, maxima, sums and other sums as the program has them, of those that the blocks gave.

    Args:
        plan: what was computed.
        state: the product, maxima and sums, with the maxima subtracted from the scores.
        thins: what the rows go through.
        arrays: those of `thins` that have one.
    """
    mixed, top, total = state
    given = iter(arrays)
    rows = [(thin, None if thin.places is None else thin.spread(next(given), plan)) for thin in thins]
    by_kind = {kind: [x for thin, x in rows if thin.kind == kind] for kind in (SHIFT, OTHER, COUNTED, "seen")}
    others = [total * jnp.exp(top - x) for x in by_kind[OTHER]]
    if plan.shift == "top":
        lost = top == -jnp.inf
        total = _zeroed(_both(lost, by_kind[COUNTED]), total, jnp.nan)
        if not plan.divided:
            mixed = _zeroed(along(_both(lost, by_kind["seen"]), plan, mixed.ndim), mixed, jnp.nan)
    else:
        back = jnp.exp(safe(top)) if plan.shift == "none" else jnp.exp(top - by_kind[SHIFT][0])
        total = total * back
        if not plan.divided:
            mixed = mixed * along(back, plan, mixed.ndim)
    after = [(thin.kind, x) for thin, x in rows if thin.kind not in (SHIFT, OTHER, COUNTED)]
    while after and after[0][0] == "seen" and plan.shift != "row":
        after.pop(0)  # what is not seen is zero already
    for kind, x in _guarded(after, total):
        row = along(x, plan, mixed.ndim)
        if kind == "zero":
            mixed = _zeroed(row, mixed)
        elif kind == "mul":
            mixed = mixed * row
        else:
            mixed = mixed / row
    return [mixed, top, total, *others]


def _zeroed(where: Any, x: Any, value: float = 0.0) -> Any:
    """An array with another number where a condition holds, which may repeat along axes of size one."""
    where = lax.broadcast_in_dim(where, x.shape, range(x.ndim))
    return lax.select(where, lax.full_like(x, value), x)


def _both(lost: Any, seen: Sequence[Any]) -> Any:
    for x in seen:
        lost = lost & x
    return lost


def _guarded(rows: Sequence[tuple[str, Any]], total: Any) -> Iterator[tuple[str, Any]]:
    """Multiplications, divisions and rows that are zero; those are divided by one before."""
    probe, zeros = total, []
    for kind, x in rows:
        probe = probe * x if kind == "mul" else probe / x if kind == "div" else probe
        zeros.append(lax.bitwise_not(x) if kind == "seen" else probe != probe if kind == "nan" else None)
    for at, ((kind, x), zero) in enumerate(zip(rows, zeros, strict=True)):
        if zero is not None:
            yield "zero", zero
            continue
        for later in zeros[at:]:
            x = x if later is None else _zeroed(later, x, 1.0)
        yield kind, x
