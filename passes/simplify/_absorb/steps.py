"""Operations that keep the elements and change their places, and what they do to a coefficient."""

from __future__ import annotations

import math
from typing import Any, Final

import jax.numpy as jnp

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._absorb.known import is_float

Shape = tuple[int, ...]

Step = tuple[str, Any, Any]
"""`transpose` with its permutation and inverse, `reshape` with the shapes before and after, or `convert`
with the dtypes."""

_RESHAPES: Final = frozenset({"squeeze", "expand_dims", "broadcast_in_dim"})


def step_of(node: Node) -> Step | None:
    """What an operation does with places, if it does nothing else."""
    if len(node.results) != 1 or len(node.operands) != 1:
        return None
    before, after = node.operands[0], node.result
    if node.op == "transpose":
        there = tuple(map(int, node.params["permutation"]))
        return ("transpose", there, tuple(there.index(axis) for axis in range(len(there))))
    if _is_reshape(node):
        return ("reshape", before.shape, after.shape)
    if node.op == "convert_element_type" and _keeps_range(before, after):
        return ("convert", before.dtype, after.dtype)
    return None


def _is_reshape(node: Node) -> bool:
    """Whether a node gives the same elements, and some, another shape."""
    if not (node.result.is_static and node.operands[0].is_static):
        return False  # which axes go together is not known of symbolic sizes
    size = math.prod(node.result.shape)
    if size == 0 or math.prod(node.operands[0].shape) != size:
        return False
    if node.op == "reshape":
        return node.params.get("dimensions") is None
    return node.op in _RESHAPES


def _keeps_range(before: Value, after: Value) -> bool:
    """Whether what is finite stays finite."""
    if not is_float(before) or not is_float(after):
        return False
    return int(jnp.finfo(after.dtype).maxexp) >= int(jnp.finfo(before.dtype).maxexp)


def reverse(step: Step) -> Step:
    """The step back."""
    return (step[0], step[2], step[1])


def moved_shape(shape: Shape, step: Step) -> Shape:
    """The shape of a coefficient, one where it is constant, after a step."""
    kind, before, after = step
    if kind == "transpose":
        return tuple(shape[axis] for axis in before)
    return _reshaped(shape, before, after)[1] if kind == "reshape" else shape


def moved(array: Any, step: Step) -> Any:
    """A coefficient after a step; a scalar stays what it is."""
    kind, before, after = step
    if array.ndim == 0:
        return array
    if kind == "transpose":
        return jnp.transpose(array, before)
    if kind != "reshape":
        return array
    whole, target = _reshaped(array.shape, before, after)
    return jnp.reshape(jnp.broadcast_to(array, whole), target)


def replayed(array: Any, step: Step) -> Any:
    """The data itself after a step."""
    kind, before, after = step
    if kind == "transpose":
        return jnp.transpose(array, before)
    return jnp.reshape(array, after) if kind == "reshape" else array


def _reshaped(shape: Shape, before: Shape, after: Shape) -> tuple[Shape, Shape]:
    """What to broadcast a coefficient to before it is reshaped, and to what."""
    whole, target = [1] * len(before), [1] * len(after)
    for here, there in _segments(before, after):
        if any(shape[axis] != 1 for axis in here):
            for axis in here:
                whole[axis] = before[axis]
            for axis in there:
                target[axis] = after[axis]
    return tuple(whole), tuple(target)


def _segments(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """The groups of axes that a reshape maps to one another."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        here: list[int] = []
        there: list[int] = []
        left = right = 1
        while not (here or there) or left != right:
            if j >= len(after) or (i < len(before) and left <= right):
                here.append(i)
                left *= before[i]
                i += 1
            else:
                there.append(j)
                right *= after[j]
                j += 1
        found.append((here, there))
    return found
