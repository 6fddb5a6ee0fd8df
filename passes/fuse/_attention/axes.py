"""Following an axis from the result of an operation to its operands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from lepton_jax.ir.graph import Node

ELEMENTWISE: Final = frozenset(
    {
        "abs",
        "add",
        "add_any",
        "and",
        "atan2",
        "cbrt",
        "ceil",
        "clamp",
        "convert_element_type",
        "copy",
        "copy_p",
        "cos",
        "cosh",
        "div",
        "eq",
        "erf",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "integer_pow",
        "is_finite",
        "le",
        "log",
        "log1p",
        "logistic",
        "lt",
        "max",
        "min",
        "mul",
        "ne",
        "neg",
        "nextafter",
        "not",
        "one_minus_square",
        "or",
        "pow",
        "rem",
        "round",
        "rsqrt",
        "select_n",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "xor",
    }
)
"""Operations that make each element of their result of the elements at the same place."""

MOVES: Final = frozenset({"transpose", "reshape", "broadcast_in_dim", "squeeze"})
"""Operations that only move elements, and along which an axis can be followed."""

Labels = tuple[int | None, int | None]
"""Which axis of a value counts the queries and which one the keys."""


def sources(node: Node, axis: int) -> list[int | None] | None:
    """For each operand the axis that becomes `axis` of the node's result, None where it has none.

    Returns:
        None where the axis cannot be followed: it is split, merged or made by something else.
    """
    if node.op in ELEMENTWISE:
        size = node.result.shape[axis]
        found: list[int | None] = []
        for operand in node.operands:
            full = operand.ndim == node.result.ndim and operand.shape[axis] == size
            found.append(axis if full else None)
        return found
    if node.op == "dot_general":
        return _of_dot(node, axis)
    if node.op == "reduce_sum":
        gone = {int(a) for a in node.params["axes"]}
        return [[d for d in range(node.operands[0].ndim) if d not in gone][axis]]
    if node.op not in MOVES or len(node.operands) != 1:
        return None
    return _of_move(node, axis)


def operand_labels(node: Node, labels: Labels) -> list[Labels] | None:
    """Which axes of each of a node's operands count the queries and keys; None where `sources` has none."""
    sides: list[list[int | None]] = []
    for axis in labels:
        found = [None] * len(node.operands) if axis is None else sources(node, axis)
        if found is None:
            return None
        sides.append(list(found))
    return [*zip(*sides, strict=True)]


def _of_move(node: Node, axis: int) -> list[int | None] | None:
    (operand,) = node.operands
    if node.op == "transpose":
        return [int(node.params["permutation"][axis])]
    if node.op == "broadcast_in_dim":
        places = [int(d) for d in node.params["broadcast_dimensions"]]
        if axis not in places or operand.shape[places.index(axis)] != node.result.shape[axis]:
            return [None]
        return [places.index(axis)]
    if node.op == "squeeze":
        gone = {int(d) for d in node.params["dimensions"]}
        return [[d for d in range(operand.ndim) if d not in gone][axis]]
    return _kept(operand.shape, node.result.shape, axis)


def _kept(old: Sequence[int], new: Sequence[int], axis: int) -> list[int | None] | None:
    """The axis of the same size with as many elements in front of it, through a reshape."""
    before = math.prod(new[:axis])
    for d, size in enumerate(old):
        if size == new[axis] and math.prod(old[:d]) == before:
            return [d]
    return None


def dot_axes(node: Node) -> tuple[list[int], list[int], list[tuple[int | None, int | None]]]:
    """The free dimensions of both operands of a product, and where each axis of its result comes from."""
    (left, right), (left_batch, right_batch) = dot_numbers(node)
    free = [
        [d for d in range(operand.ndim) if d not in (*contract, *batch)]
        for operand, contract, batch in zip(
            node.operands, (left, right), (left_batch, right_batch), strict=True
        )
    ]
    origin: list[tuple[int | None, int | None]] = [*zip(left_batch, right_batch, strict=True)]
    origin += [(d, None) for d in free[0]]
    origin += [(None, d) for d in free[1]]
    return free[0], free[1], origin


def _of_dot(node: Node, axis: int) -> list[int | None]:
    return list(dot_axes(node)[2][axis])


def dot_numbers(node: Node) -> Any:
    """A product's dimension numbers as plain tuples of whole numbers."""
    contract, batch = node.params["dimension_numbers"]
    return tuple(tuple(tuple(int(d) for d in side) for side in sides) for sides in (contract, batch))


def result_axis(node: Node, position: int, axis: int) -> int | None:
    """The axis of the node's result that `axis` of an operand becomes, None where there is none."""
    for candidate in range(node.result.ndim):
        found = sources(node, candidate)
        if found is not None and found[position] == axis:
            return candidate
    return None
