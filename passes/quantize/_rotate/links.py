"""Which axes of operands go with an axis of a result, where an operation is linear along it."""

from __future__ import annotations

import math
from typing import Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._absorb.known import is_flat, is_float

_SUMS: Final = frozenset({"add", "sub", "add_any"})
_SAME: Final = frozenset({"neg", "copy", "stop_gradient", "optimization_barrier", "reduce_precision"})

Links = list[tuple[int, int]]
"""Operands, by position, and their axes."""


def links(node: Node, axis: int) -> Links | None:
    """The operands that an operation is linear in, along an axis of its result, and the axes there.

    If those operands are multiplied along these axes by a matrix, so is the result: elements
    along the axis are treated alike and do not meet otherwise. None where that is not so.
    """
    op = node.op
    if len(node.results) != 1 or not is_float(node.result):
        return None
    if op in _SUMS:
        return [(i, axis) for i in range(len(node.operands))]
    if op == "mul":
        return next(([(i, axis)] for i in (0, 1) if is_flat(node.operands[1 - i], axis)), None)
    if op == "div":
        return [(0, axis)] if is_flat(node.operands[1], axis) else None
    if op in _SAME and len(node.operands) == 1:
        return [(0, axis)] if op != "reduce_precision" else None
    if op == "convert_element_type":
        return [(0, axis)] if is_float(node.operands[0]) else None
    if op == "select_n":
        return [(i, axis) for i in range(1, len(node.operands))] if is_flat(node.operands[0], axis) else None
    return _moved(node, axis)


def _moved(node: Node, axis: int) -> Links | None:
    """`links` of operations that move elements."""
    op, params = node.op, node.params
    before = node.operands[0] if node.operands else None
    if op == "transpose":
        return [(0, int(params["permutation"][axis]))]
    if op == "broadcast_in_dim":
        places = list(params["broadcast_dimensions"])
        return [(0, places.index(axis))] if axis in places else None
    if op in ("reshape", "squeeze", "expand_dims") and before is not None:
        if op == "reshape" and params.get("dimensions") is not None:
            return None
        found = _same_place(node.result.shape, axis, before.shape)
        return None if found is None else [(0, found)]
    if op in ("slice", "dynamic_slice", "rev") and before is not None:
        touched = (
            axis in params["dimensions"] if op == "rev" else before.shape[axis] != node.result.shape[axis]
        )
        return None if touched else [(0, axis)]
    if op == "concatenate":
        return None if params["dimension"] == axis else [(i, axis) for i in range(len(node.operands))]
    if op == "reduce_sum":
        kept = [i for i in range(node.operands[0].ndim) if i not in params["axes"]]
        return [(0, kept[axis])]
    return None


def _same_place(shape: tuple[int, ...], axis: int, other: tuple[int, ...]) -> int | None:
    """The axis of another shape of the same elements that holds what an axis holds."""
    before = math.prod(shape[:axis])
    for place, size in enumerate(other):
        if size == shape[axis] and math.prod(other[:place]) == before:
            return place
    return None


def link_down(node: Node, position: int, axis: int) -> int | None:
    """The axis of the result that goes with an axis of an operand, by `links`."""
    if len(node.results) != 1:
        return None
    for place in range(node.result.ndim):
        if (position, axis) in (links(node, place) or ()):
            return place
    return None


def is_rows(value: Value, axis: int) -> bool:
    """Whether a value is the same along an axis: one number for each row."""
    return value.ndim == 0 or is_flat(value, axis)
