"""Ways to read a sort, in the plain form of slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import made_by, movement_rule
from lepton_jax.passes.simplify._movement.slices import strides_of
from lepton_jax.passes.simplify._order.selection import can_be_selected
from lepton_jax.passes.simplify._order.sorts import MOST_PART, is_chosen_from
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_MOST_ENTRIES: Final = 8


@movement_rule("slice", level="exact")
def slice_of_reversed_sort(node: Node, ctx: PassContext) -> Outcome:
    """reverse(sort(x))[a:b] → reverse(sort(x)[n - b:n - a]), as of a sort in descending order"""
    rev = made_by(node.operands[0], node, "rev")
    sort = None if rev is None or len(rev.result.uses) != 1 else made_by(rev.operands[0], node, "sort")
    if rev is None or sort is None or any(s != 1 for s in strides_of(node)):
        return None
    start, limit = list(node.params["start_indices"]), list(node.params["limit_indices"])
    for d in rev.params["dimensions"]:
        length = rev.result.shape[d]
        start[d], limit[d] = length - limit[d], length - start[d]
    bounds = (tuple(start), tuple(limit))
    return rewrite(reversed_part, rev.operands[0], bounds=bounds, dimensions=tuple(rev.params["dimensions"]))


def reversed_part(
    x: jax.Array, *, bounds: tuple[tuple[int, ...], tuple[int, ...]], dimensions: Sequence[int]
) -> jax.Array:
    """A part of `x`, reversed."""
    part = lax.slice(x, *bounds)
    turned = [d for d in dimensions if part.shape[d] != 1]
    return lax.rev(part, turned) if turned else part


@movement_rule("gather", level="exact")
def entry_of_sort(node: Node, ctx: PassContext) -> Outcome:
    """sort(x) gathered at up to eight constant places → those slices, as in a quantile

    Where they are near an end, or where they can be found by bisection.
    """
    sort = made_by(node.operands[0], node, "sort")
    index = node.operands[1]
    if sort is None or not is_chosen_from(sort) or not index.is_const:
        return None
    axis = _axis_read(node, int(sort.params["dimension"]) % node.operands[0].ndim)
    contents: Any = None if axis is None else _jax.plain_constant(index.const)
    if axis is None or contents is None:
        return None
    places, length = tuple(int(i) for i in np.asarray(contents).ravel()), node.operands[0].shape[axis]
    if not all(0 <= place < length for place in places):
        return None
    if not all(_near_an_end(place, length) for place in places) and not can_be_selected(sort, ctx):
        return None
    return rewrite(entries, node.operands[0], axis=axis, places=places, several=index.ndim == 2)


def _axis_read(node: Node, axis: int) -> int | None:
    """The axis, if a gather reads whole lines across it, as many as it has places, or one."""
    numbers, (x, index) = node.params["dimension_numbers"], node.operands
    others = tuple(d for d in range(x.ndim) if d != axis)
    if tuple(map(int, numbers.start_index_map)) != (axis,) or numbers.operand_batching_dims:
        return None
    if tuple(map(int, numbers.collapsed_slice_dims)) != (axis,) or index.ndim > 2 or index.shape[-1] != 1:
        return None
    if any(node.params["slice_sizes"][d] != x.shape[d] for d in others) or index.aval.size > _MOST_ENTRIES:
        return None
    first = index.ndim - 1
    wanted = tuple(range(first, first + len(others)))
    return axis if index.aval.size > 0 and tuple(map(int, numbers.offset_dims)) == wanted else None


def _near_an_end(place: int, length: int) -> bool:
    return min(place + 1, length - place) * MOST_PART <= length


def entries(x: jax.Array, *, axis: int, places: tuple[int, ...], several: bool) -> jax.Array:
    """Some entries along an axis: if there may be several, in a new first dimension."""
    found = []
    for place in places:
        start = tuple(place if d == axis else 0 for d in range(x.ndim))
        limit = tuple(place + 1 if d == axis else length for d, length in enumerate(x.shape))
        found.append(lax.squeeze(lax.slice(x, start, limit), (axis,)))
    return lax.concatenate([lax.expand_dims(e, (0,)) for e in found], 0) if several else found[0]


RULES: Final[tuple[Rule, ...]] = (slice_of_reversed_sort, entry_of_sort)
