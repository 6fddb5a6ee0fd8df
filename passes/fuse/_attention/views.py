"""The atoms of the axes of views: an array with its axes moved, split, merged or repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.shape import Axes

VIEWS: Final = frozenset({"transpose", "reshape", "squeeze", "broadcast_in_dim"})


def moved(node: Node, axes: Axes, sizes: Sequence[int]) -> Axes | None:
    """The atoms of the axes of a view's result, None where an atom is cut or repeated."""
    shape = node.result.shape
    if node.op == "transpose":
        return tuple(axes[int(d)] for d in node.params["permutation"])
    if node.op == "broadcast_in_dim":
        places = [int(d) for d in node.params["broadcast_dimensions"]]
        made = [axes[places.index(d)] if d in places else () for d in range(len(shape))]
        whole = all(made[d] or shape[d] == 1 for d in range(len(shape)))
        return tuple(made) if whole else None
    return grouped([a for part in axes for a in part], shape, sizes)


def grouped(atoms: Sequence[int], shape: Sequence[int], sizes: Sequence[int]) -> Axes | None:
    """Atoms in their order, as many to each axis as it has elements."""
    rest, made = list(atoms), []
    for length in shape:
        part: list[int] = []
        while math.prod(sizes[a] for a in part) < length and rest:
            part.append(rest.pop(0))
        if math.prod(sizes[a] for a in part) != length:
            return None
        made.append(tuple(part))
    return None if rest else tuple(made)


def narrowed(value: Value, axes: Axes) -> tuple[Value, Axes]:
    """What a broadcast repeats, with its axes."""
    axes = tuple(a if n != 1 else () for a, n in zip(axes, value.shape, strict=True))
    while value.node is not None and value.op == "broadcast_in_dim":
        (operand,) = value.node.operands
        places = [int(d) for d in value.node.params["broadcast_dimensions"]]
        axes = tuple(axes[p] if n != 1 else () for p, n in zip(places, operand.shape, strict=True))
        value = operand
    return value, axes


def root(value: Value, axes: Axes) -> tuple[Value, Axes]:
    """What a value is a view of, with the order of its axes there; axes of size one do not count."""
    while value.node is not None and value.op in VIEWS | {"convert_element_type"}:
        (operand,) = value.node.operands
        before = axes if value.op == "convert_element_type" else _before(value.node, axes)
        if before is None:
            break
        value, axes = operand, before
    return value, axes


def _before(node: Node, axes: Axes) -> Axes | None:
    """The axes of a view's operand."""
    (operand,) = node.operands
    if node.op == "transpose":
        order = [int(d) for d in node.params["permutation"]]
        return tuple(axes[order.index(d)] for d in range(operand.ndim))
    if node.op == "broadcast_in_dim":
        places = [int(d) for d in node.params["broadcast_dimensions"]]
        if math.prod(operand.shape) != math.prod(node.result.shape):
            return None
        return tuple(axes[p] for p in places)
    full = [a for a, n in zip(axes, node.result.shape, strict=True) if n != 1]
    if [n for n in operand.shape if n != 1] != [n for n in node.result.shape if n != 1]:
        return None
    rest = iter(full)
    return tuple(next(rest) if n != 1 else () for n in operand.shape)


def follow(value: Value, root: tuple[Value, Axes]) -> Axes | None:
    """The axes of a value that is a view of a root with known axes."""
    chain: list[Node] = []
    while value is not root[0]:
        node = value.node
        if node is None or node.op not in VIEWS | {"convert_element_type"}:
            return None
        chain.append(node)
        value = node.operands[0]
    axes: Axes = root[1]
    for node in reversed(chain):
        if node.op == "convert_element_type":
            continue
        if node.op == "transpose":
            axes = tuple(axes[int(d)] for d in node.params["permutation"])
        elif node.op == "broadcast_in_dim":
            places = [int(d) for d in node.params["broadcast_dimensions"]]
            if math.prod(node.result.shape) != math.prod(node.operands[0].shape):
                return None
            axes = tuple(axes[places.index(d)] if d in places else () for d in range(node.result.ndim))
        else:
            shapes = [[n for n in v.shape if n != 1] for v in (node.operands[0], node.result)]
            if shapes[0] != shapes[1]:
                return None
            rest = iter([a for a, n in zip(axes, node.operands[0].shape, strict=True) if n != 1])
            axes = tuple(next(rest) if n != 1 else () for n in node.result.shape)
    return axes
