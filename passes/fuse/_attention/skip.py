"""Which blocks of scores are masked for sure: intervals of values, one for each block."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import MOVES, Labels, operand_labels
from lepton_jax.passes.fuse._attention.inward import outer_value

_DEEPEST: Final = 48
_LARGEST: Final = 1 << 26
_LOW: Final = -1e4
"""What masked scores are below, if they are not -inf."""

Interval = tuple[Any, Any]
"""Least and greatest value in each block, float64 arrays that broadcast to [query blocks, key blocks]."""

_UNKNOWN: Final[Interval] = (np.full((1, 1), -np.inf), np.full((1, 1), np.inf))


@dataclass(frozen=True)
class Blocks:
    """Which blocks count.

    Attributes:
        counts: [query blocks, key blocks], False where all scores are masked.
        fill: what the scores are there.
    """

    counts: np.ndarray[Any, Any]
    fill: float


class Grid:
    """What is known of [queries × keys] arrays in blocks of any size that is a multiple of the smallest."""

    def __init__(self, scores: Value, labels: Labels, step: int) -> None:
        """Of the arrays that scores are made of; `step` is the smallest number of queries and keys."""
        self.step = step
        self.size = tuple(scores.shape[a] for a in labels if a is not None)
        self._shape = tuple(-(-n // step) for n in self.size)
        self._scores = scores, labels
        self._intervals = _Intervals((step, step))

    def interval(self, value: Value, labels: Labels, block: tuple[int, int]) -> Interval:
        """Least and greatest value in each block, [query blocks, key blocks]."""
        low, high = (np.broadcast_to(x, self._shape) for x in self._intervals.of(value, labels, 0))
        for axis, length in enumerate(block):
            firsts = np.arange(0, self._shape[axis], -(-length // self.step))
            low, high = np.minimum.reduceat(low, firsts, axis), np.maximum.reduceat(high, firsts, axis)
        return low, high

    def blocks(self, block: tuple[int, int]) -> Blocks:
        """The blocks in which not every score is -inf, or one and the same very low number."""
        low, high = self.interval(*self._scores, block)
        never = high == -np.inf
        same = (low == high) & (high < _LOW)
        fills = high[same & ~never]
        fill = float(fills.max()) if fills.size else -np.inf
        return Blocks(~(never | same), fill)


class _Intervals:
    def __init__(self, block: tuple[int, int]) -> None:
        self.block = block
        self.known: dict[tuple[Value, Labels], Interval] = {}

    def of(self, value: Value, labels: Labels, depth: int) -> Interval:
        """The interval of a value in each block."""
        key = (value, labels)
        if key not in self.known:
            self.known[key] = self.find(value, labels, depth)
        return self.known[key]

    def find(self, value: Value, labels: Labels, depth: int) -> Interval:
        if value.is_const:
            return self.of_constant(value, labels)
        node = value.node
        if node is None:
            outer = outer_value(value)
            return _UNKNOWN if outer is None else self.of(outer, labels, depth)
        if depth > _DEEPEST or len(node.results) != 1:
            return _UNKNOWN
        if node.op == "iota":
            return self.of_iota(node, labels)
        if node.op not in MOVES and node.op not in _TRANSFERS:
            return self.of_facts(value)
        marks = operand_labels(node, labels)
        if marks is None:
            return _UNKNOWN
        parts = [self.of(v, m, depth + 1) for v, m in zip(node.operands, marks, strict=True)]
        if node.op in MOVES:
            return parts[0]
        return _TRANSFERS[node.op](node, parts)

    def of_facts(self, value: Value) -> Interval:
        splat = facts_of(value).splat
        if splat is None or np.ndim(splat) or np.iscomplexobj(splat):
            return _UNKNOWN
        number = np.full((1, 1), float(splat))
        return number, number

    def of_iota(self, node: Node, labels: Labels) -> Interval:
        along, size = node.params["dimension"], node.result.shape[node.params["dimension"]]
        for side, axis in enumerate(labels):
            if axis == along:
                first = np.arange(0, size, self.block[side], dtype=np.float64)
                last = np.minimum(first + self.block[side], size) - 1
                return (_on(first, side), _on(last, side))
        return np.zeros((1, 1)), np.full((1, 1), float(size - 1))

    def of_constant(self, value: Value, labels: Labels) -> Interval:
        array = _jax.plain_constant(value.const)
        if array is None or array.size > _LARGEST or not array.size or array.dtype.kind not in "biufV":
            return _UNKNOWN
        array = np.asarray(array, np.float64)
        rest = tuple(d for d in range(array.ndim) if d not in labels)
        low, high = array.min(rest), array.max(rest)
        if labels[0] is not None and labels[1] is not None and labels[0] > labels[1]:
            low, high = low.T, high.T
        for side, axis in enumerate(labels):
            low, high = (np.expand_dims(x, side) if axis is None else x for x in (low, high))
            if axis is not None:
                firsts = np.arange(0, low.shape[side], self.block[side])
                low = np.minimum.reduceat(low, firsts, side)
                high = np.maximum.reduceat(high, firsts, side)
        return low, high


def _on(line: Any, side: int) -> Any:
    return line[:, None] if side == 0 else line[None, :]


# One function per operation: the interval of its result


def _add(node: Node, parts: list[Interval]) -> Interval:
    (a, b), (c, d) = parts
    with np.errstate(invalid="ignore"):
        low, high = a + c, b + d
    high = np.where((b == -np.inf) | (d == -np.inf), -np.inf, np.where(np.isnan(high), np.inf, high))
    return np.where(np.isnan(low), -np.inf, low), high


def _neg(node: Node, parts: list[Interval]) -> Interval:
    return -parts[0][1], -parts[0][0]


def _sub(node: Node, parts: list[Interval]) -> Interval:
    return _add(node, [parts[0], _neg(node, parts[1:])])


def _mul(node: Node, parts: list[Interval]) -> Interval:
    with np.errstate(invalid="ignore"):
        ends = [np.asarray(a * b) for a, b in itertools.product(*parts)]
    low, high = _least(np.minimum, ends), _least(np.maximum, ends)
    return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)


def _least(pick: Any, ends: list[Any]) -> Any:
    return pick(pick(ends[0], ends[1]), pick(ends[2], ends[3]))


def _convert(node: Node, parts: list[Interval]) -> Interval:
    kind = np.dtype(node.result.dtype).kind
    low, high = parts[0]
    if kind == "b":
        return _truth((low > 0) | (high < 0), (low == 0) & (high == 0))
    return (np.trunc(low), np.trunc(high)) if kind in "iu" else (low, high)


def _truth(true: Any, false: Any) -> Interval:
    return np.where(true, 1.0, 0.0), np.where(false, 0.0, 1.0)


def _compare(is_true: Callable[..., Any], is_false: Callable[..., Any]) -> Callable[..., Interval]:
    def compare(node: Node, parts: list[Interval]) -> Interval:
        (a, b), (c, d) = parts
        return _truth(is_true(a, b, c, d), is_false(a, b, c, d))

    return compare


def _not(node: Node, parts: list[Interval]) -> Interval:
    return (1 - parts[0][1], 1 - parts[0][0]) if node.result.dtype == bool else _UNKNOWN


def _and(node: Node, parts: list[Interval]) -> Interval:
    return _min(node, parts) if node.result.dtype == bool else _UNKNOWN


def _or(node: Node, parts: list[Interval]) -> Interval:
    return _max(node, parts) if node.result.dtype == bool else _UNKNOWN


def _min(node: Node, parts: list[Interval]) -> Interval:
    return np.minimum(parts[0][0], parts[1][0]), np.minimum(parts[0][1], parts[1][1])


def _max(node: Node, parts: list[Interval]) -> Interval:
    return np.maximum(parts[0][0], parts[1][0]), np.maximum(parts[0][1], parts[1][1])


def _abs(node: Node, parts: list[Interval]) -> Interval:
    low, high = parts[0]
    least = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(np.abs(low), np.abs(high)))
    return least, np.maximum(np.abs(low), np.abs(high))


def _select(node: Node, parts: list[Interval]) -> Interval:
    if len(parts) != 3 or node.operands[0].dtype != bool:
        return _UNKNOWN
    (low, high), off, on = parts
    chosen = [
        np.where(low == 1, b, np.where(high == 0, a, pick(a, b)))
        for a, b, pick in zip(off, on, (np.minimum, np.maximum), strict=True)
    ]
    return chosen[0], chosen[1]


_TRANSFERS: Final[dict[str, Callable[[Node, list[Interval]], Interval]]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "neg": _neg,
    "abs": _abs,
    "max": _max,
    "min": _min,
    "and": _and,
    "or": _or,
    "not": _not,
    "select_n": _select,
    "convert_element_type": _convert,
    "copy": lambda node, parts: parts[0],
    "stop_gradient": lambda node, parts: parts[0],
    "ge": _compare(lambda a, b, c, d: a >= d, lambda a, b, c, d: b < c),
    "gt": _compare(lambda a, b, c, d: a > d, lambda a, b, c, d: b <= c),
    "le": _compare(lambda a, b, c, d: b <= c, lambda a, b, c, d: a > d),
    "lt": _compare(lambda a, b, c, d: b < c, lambda a, b, c, d: a >= d),
    "eq": _compare(lambda a, b, c, d: (a == b) & (c == d) & (a == c), lambda a, b, c, d: (b < c) | (a > d)),
    "ne": _compare(lambda a, b, c, d: (b < c) | (a > d), lambda a, b, c, d: (a == b) & (c == d) & (a == c)),
}
