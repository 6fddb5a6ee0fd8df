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
from lepton_jax.passes.simplify._order.sorts import MOST_PART, is_chosen_from
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome


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
    """sort(x) gathered at one constant place → that slice, as in a quantile"""
    sort = made_by(node.operands[0], node, "sort")
    if (
        sort is None
        or not is_chosen_from(sort)
        or not node.operands[1].is_const
        or node.operands[1].shape != (1,)
    ):
        return None
    numbers, x = node.params["dimension_numbers"], node.operands[0]
    axis = int(sort.params["dimension"]) % x.ndim
    others = tuple(d for d in range(x.ndim) if d != axis)
    if tuple(map(int, numbers.start_index_map)) != (axis,) or numbers.operand_batching_dims:
        return None
    if tuple(map(int, numbers.collapsed_slice_dims)) != (axis,) or node.result.ndim != len(others):
        return None
    if any(node.params["slice_sizes"][d] != x.shape[d] for d in others):
        return None
    contents: Any = _jax.plain_constant(node.operands[1].const)
    place = None if contents is None else int(np.asarray(contents)[0])
    if place is None or not 0 <= place < x.shape[axis]:
        return None
    return rewrite(entry, x, axis=axis, place=place) if _near_an_end(place, x.shape[axis]) else None


def _near_an_end(place: int, length: int) -> bool:
    return min(place + 1, length - place) * MOST_PART <= length


def entry(x: jax.Array, *, axis: int, place: int) -> jax.Array:
    """One entry along an axis."""
    start = tuple(place if d == axis else 0 for d in range(x.ndim))
    limit = tuple(place + 1 if d == axis else length for d, length in enumerate(x.shape))
    return lax.squeeze(lax.slice(x, start, limit), (axis,))


RULES: Final[tuple[Rule, ...]] = (slice_of_reversed_sort, entry_of_sort)
