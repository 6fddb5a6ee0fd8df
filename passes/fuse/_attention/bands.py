"""Masks that are bands: which keys a query sees, as limits on the key's number minus the query's."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import MOVES, Labels, operand_labels

Band = tuple[float, float]
"""Least and greatest `key - query` that is seen."""

EVERYTHING: Final[Band] = (-np.inf, np.inf)

_Affine = tuple[float, float, float]
"""The factor of the query's number, that of the key's, and what is added."""

_DEEPEST: Final = 24
_LARGEST: Final = 1 << 24
_COMPARISONS: Final = {"ge": (1, 0), "gt": (1, -1), "le": (-1, 0), "lt": (-1, -1)}
_SAME: Final = MOVES | {"convert_element_type", "copy"}


def within(first: Band, second: Band) -> Band:
    """What both bands have."""
    return max(first[0], second[0]), min(first[1], second[1])


def band_of(mask: Value, labels: Labels, negated: bool = False, depth: int = 0) -> Band | None:
    """The band that a boolean mask is (or its opposite, if negated), None where it is something else."""
    node = mask.node
    splat = facts_of(mask).splat
    if splat is not None:
        return EVERYTHING if bool(splat) != negated else None
    if mask.is_const:
        return _of_constant(mask, labels, negated)
    if node is None or depth > _DEEPEST:
        return None
    if node.op == "not":
        return band_of(node.operands[0], labels, not negated, depth + 1)
    if node.op in _COMPARISONS:
        return _compared(node, labels, negated)
    marks = operand_labels(node, labels)
    if marks is None or node.op not in _SAME | {"and", "or"}:
        return None
    if node.op in _SAME:
        return band_of(node.operands[0], marks[0], negated, depth + 1)
    if (node.op == "and") == negated:
        return None
    parts = [band_of(v, m, negated, depth + 1) for v, m in zip(node.operands, marks, strict=True)]
    return None if parts[0] is None or parts[1] is None else within(parts[0], parts[1])


def _compared(node: Node, labels: Labels, negated: bool) -> Band | None:
    marks = operand_labels(node, labels)
    if marks is None:
        return None
    left, right = (_affine(v, m, 0) for v, m in zip(node.operands, marks, strict=True))
    if left is None or right is None:
        return None
    sign, strict = _COMPARISONS[node.op]
    query, key, rest = (sign * (a - b) for a, b in zip(left, right, strict=True))
    rest += strict  # now: query * row + key * column + rest >= 0
    if negated:
        query, key, rest = -query, -key, -rest - 1
    if (query, key) == (-1, 1):
        return -rest, np.inf
    return (-np.inf, rest) if (query, key) == (1, -1) else None


def _affine(value: Value, labels: Labels, depth: int) -> _Affine | None:
    """A value as a sum of multiples of the numbers of query and key, if it is one of integers."""
    splat = facts_of(value).splat
    if splat is not None:
        return (0, 0, float(splat)) if np.isreal(splat) and float(splat).is_integer() else None
    if value.is_const:
        return _line(value, labels)
    node = value.node
    if node is None or depth > _DEEPEST or np.dtype(value.dtype).kind not in "iu":
        return None
    if node.op == "iota":
        along = node.params["dimension"]
        if along not in labels:
            return None
        return (1, 0, 0) if along == labels[0] else (0, 1, 0)
    marks = operand_labels(node, labels)
    if marks is None or node.op not in _SAME | {"add", "sub", "neg"}:
        return None
    parts = [_affine(v, m, depth + 1) for v, m in zip(node.operands, marks, strict=True)]
    if any(p is None for p in parts):
        return None
    first, second = parts[0], parts[-1]
    assert first is not None and second is not None
    if node.op in _SAME:
        return first
    if node.op == "neg":
        return -first[0], -first[1], -first[2]
    sign = 1 if node.op == "add" else -1
    return first[0] + sign * second[0], first[1] + sign * second[1], first[2] + sign * second[2]


def _line(value: Value, labels: Labels) -> _Affine | None:
    """A constant that counts along one of the axes."""
    array: Any = _jax.plain_constant(value.const)
    if array is None or array.size > _LARGEST or array.dtype.kind not in "iu":
        return None
    for side, axis in enumerate(labels):
        if axis is None or array.shape[axis] != array.size:
            continue
        flat = array.reshape(-1).astype(np.int64)
        if (np.diff(flat) == 1).all():
            return float(side == 0), float(side == 1), float(flat[0])
    return None


def _of_constant(mask: Value, labels: Labels, negated: bool) -> Band | None:
    """A constant table of truth values that is a band."""
    table: Any = _jax.plain_constant(mask.const)
    if table is None or table.size > _LARGEST or None in labels or table.dtype != bool:
        return None
    rest = tuple(d for d in range(table.ndim) if d not in labels)
    if any(table.shape[d] != 1 for d in rest):
        return None
    table = table.squeeze(rest)
    if labels[0] > labels[1]:  # type: ignore[operator]
        table = table.T
    table = table != negated
    rows, columns = np.nonzero(table)
    if not rows.size:
        return None
    distance = columns - rows
    low, high = distance.min(), distance.max()
    every = np.arange(table.shape[1]) - np.arange(table.shape[0])[:, None]
    if not ((every >= low) & (every <= high) == table).all():
        return None
    return (
        -np.inf if low == every.min() else float(low),
        np.inf if high == every.max() else float(high),
    )
