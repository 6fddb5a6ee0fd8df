"""Operations that only move elements, on codes and on their scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.numerics.cache import DECODED, ENCODED

Axes = frozenset[int]
"""Axes along which all elements share a scale: there the scale has size one."""

_SAME: Final = frozenset({"copy", "copy_p", "stop_gradient", "name", "optimization_barrier"})


def is_mark(node: Node, mark: str) -> bool:
    """Whether a node is one of the marks of `lepton_jax.numerics.cache`."""
    return node.op == "name" and node.params.get("name") == mark


def moved(node: Node, shared: Axes) -> Axes | None:
    """The shared axes of the result of a move; None where the node is no move, or scales cannot follow."""
    if node.op in _SAME:
        return None if is_mark(node, ENCODED) or is_mark(node, DECODED) else shared
    if node.op == "convert_element_type":
        return shared if jnp.issubdtype(node.result.dtype, jnp.floating) else None
    made = _MOVES.get(node.op)
    found = None if made is None else made(node, shared)
    return found if found and all(type(d) is int for d in node.result.shape) else None


def _transpose(node: Node, shared: Axes) -> Axes | None:
    return frozenset(i for i, axis in enumerate(node.params["permutation"]) if axis in shared)


def _squeeze(node: Node, shared: Axes) -> Axes | None:
    gone = set(node.params["dimensions"])
    left = [axis for axis in range(node.operands[0].ndim) if axis not in gone]
    return frozenset(i for i, axis in enumerate(left) if axis in shared)


def _broadcast(node: Node, shared: Axes) -> Axes | None:
    return frozenset(node.params["broadcast_dimensions"][axis] for axis in shared)


def _slice(node: Node, shared: Axes) -> Axes | None:
    return shared


def _reshape(node: Node, shared: Axes) -> Axes | None:
    if node.params.get("dimensions") is not None:
        return None
    return reshaped(node.operands[0].shape, node.result.shape, shared)


def reshaped(old: Sequence[int], new: Sequence[int], shared: Axes) -> Axes | None:
    """The shared axes after a reshape; None where one is merged with an axis that is not shared.

    Example:
        >>> sorted(reshaped((2, 8, 12), (2, 8, 3, 4), frozenset({2})))
        [2, 3]
    """
    if 0 in old:
        return None
    found: set[int] = set()
    i = j = 0
    while i < len(old) or j < len(new):
        first, start = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while math.prod(old[first:i]) != math.prod(new[start:j]):
            if math.prod(old[first:i]) < math.prod(new[start:j]):
                i += 1
            else:
                j += 1
        before = [axis in shared for axis in range(first, i) if old[axis] > 1]
        if any(before) and not all(before):
            return None
        if any(before):
            found |= {axis for axis in range(start, j) if new[axis] > 1}
    return frozenset(found)


_MOVES: Final[dict[str, Callable[[Node, Axes], Axes | None]]] = {
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "slice": _slice,
    "dynamic_slice": _slice,
}


def static_of(node: Node, after: Axes) -> dict[str, Any]:
    """What `move` has to know of a node."""
    names = ("permutation", "dimensions", "broadcast_dimensions", "start_indices", "limit_indices", "strides")
    params = tuple((name, node.params[name]) for name in names if name in node.params)
    return {"op": node.op, "shape": node.result.shape, "after": after, "params": params}


def move(
    codes: jax.Array,
    scale: jax.Array,
    *indices: jax.Array,
    op: str,
    shape: tuple[int, ...],
    after: Axes,
    params: tuple[tuple[str, Any], ...],
) -> list[jax.Array]:
    """A move of codes and of their scale.

    Args:
        indices: of a dynamic slice.
        op: the operation.
        shape: of the result.
        after: its shared axes.
        params: of the operation.
    """
    known = dict(params)
    short = tuple(1 if axis in after else size for axis, size in enumerate(shape))
    both = ((codes, shape), (scale, short))
    if op == "transpose":
        return [lax.transpose(x, known["permutation"]) for x, _ in both]
    if op == "squeeze":
        return [lax.squeeze(x, known["dimensions"]) for x, _ in both]
    if op == "broadcast_in_dim":
        return [lax.broadcast_in_dim(x, size, known["broadcast_dimensions"]) for x, size in both]
    if op == "reshape":
        return [lax.reshape(x, size) for x, size in both]
    if op == "dynamic_slice":
        return [lax.dynamic_slice(x, indices, size, allow_negative_indices=False) for x, size in both]
    if op == "slice":
        start, limit, strides = known["start_indices"], known["limit_indices"], known["strides"]
        own = [
            (0, 1, 1) if axis in after else each
            for axis, each in enumerate(zip(start, limit, strides or (1,) * len(start), strict=True))
        ]
        return [lax.slice(codes, start, limit, strides), lax.slice(scale, *zip(*own, strict=True))]
    return [codes, scale]
