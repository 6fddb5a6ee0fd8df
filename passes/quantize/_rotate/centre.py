"""Whether the mean along the axis can be taken out of a stream: whether norms take it out anyway.

SliceGPT (Ashkboos et al., 2024, section 3.1): a layer norm is a root mean square norm of what has no mean,
so the mean can be taken out of all that is written instead. It must not matter to anybody else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.quantize._rotate.links import links
from lepton_jax.passes.quantize._rotate.stream import Stream

_NEAR: Final = 1e-5
_MOVES: Final = frozenset(
    {"reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "copy", "convert_element_type"}
)


@dataclass(frozen=True)
class _Moments:
    """A number for each row: a·Σx + b·(Σx)² + c·Σx² + what does not change with the mean of x."""

    first: float = 0.0
    square: float = 0.0
    second: float = 0.0

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(self.first + other.first, self.square + other.square, self.second + other.second)

    def times(self, factor: float) -> _Moments:
        """The same, multiplied by a number."""
        return _Moments(self.first * factor, self.square * factor, self.second * factor)

    def squared(self) -> _Moments | None:
        """Its square, if that is of the same form."""
        return None if self.square or self.second else _Moments(0.0, self.first**2, 0.0)

    def is_fixed(self, size: int) -> bool:
        """Whether it stays the same when a number is added to all of x: b·(Σx)² + c·Σx² with b·n = −c."""
        return self.first == 0 and math.isclose(self.square * size, -self.second, rel_tol=_NEAR)


def centred(stream: Stream) -> frozenset[Value] | str:
    """The values of a stream that have no mean, if nothing depends on the mean of the others.

    Returns:
        Those values; or why the mean matters.
    """
    means = _without_mean(stream)
    if isinstance(means, str):
        return means
    if any(node.result not in means for node in stream.rows):
        return "a number is added to each row"
    free = set(means)
    grown = True
    while grown:
        grown = False
        for value, axis in stream.axes.items():
            if value not in free and _keeps(value, axis, free, stream):
                free.add(value)
                grown = True
    for node in stream.squares:
        square = node.operands[0].node
        squared = None if square is None else square.operands[0]
        if squared not in free and not (squared is not None and _moments_of(squared, stream)):
            return "a norm without mean reads it"
    for reader in stream.readers:
        source = reader.steps[0].node if reader.steps else reader.product.node
        if not any(v in free for v in source.operands if v in stream.axes):
            return f"{source.op} reads it with its mean"
    return frozenset(free)


def _keeps(value: Value, axis: int, free: set[Value], stream: Stream) -> bool:
    """Whether an operation makes a value without mean (or of a fixed one) of such values."""
    node = value.node
    found = None if node is None or node.regions else links(node, axis)
    if not found or node is None:
        return False
    used = [node.operands[i] for i, _ in found]
    return any(v in free for v in used) and all(v in free or stream.known.is_early(v) for v in used)


def _without_mean(stream: Stream) -> set[Value] | str:
    """What the mean was subtracted from; or who else depends on the mean."""
    found: set[Value] = set()
    for value in stream.axes:
        moments = _moments_of(value, stream)
        if not moments:
            continue
        node = next(iter(moments)).node
        graph = None if node is None else node.graph
        for user in graph or ():
            if not any(v in moments for v in user.operands):
                continue
            if _takes_mean(user, value, moments, stream):
                found.add(user.result)
                continue
            made = _follow(user, moments)
            if made is None:
                return f"{user.op} reads its mean"
            if not made.is_fixed(stream.size):
                moments[user.result] = made
        if graph is None or any(v in moments for v in graph.ret.operands):
            return "its mean is a result"
    return found


def _moments_of(value: Value, stream: Stream) -> dict[Value, _Moments]:
    """The sums of a value's elements and of their squares."""
    found: dict[Value, _Moments] = {}
    for user in value.users():
        if user in stream.sums:
            found[user.result] = _Moments(first=1.0)
        for inner in user.result.users() if len(user.results) == 1 else ():
            if inner in stream.squares and all(v is value for v in user.operands):
                found[inner.result] = _Moments(second=1.0)
    return found if any(each.first for each in found.values()) else {}


def _takes_mean(node: Node, value: Value, moments: dict[Value, _Moments], stream: Stream) -> bool:
    if node.op != "sub" or node.operands[0] is not value or node.operands[1] not in moments:
        return False
    mean = moments[node.operands[1]]
    is_mean = math.isclose(mean.first * stream.size, 1.0, rel_tol=_NEAR)
    return is_mean and not mean.square and not mean.second


def _follow(node: Node, moments: dict[Value, _Moments]) -> _Moments | None:
    """What an operation makes of sums, if it is of the same form."""
    if len(node.results) != 1:
        return None
    known = [moments.get(v) for v in node.operands]
    if node.op in _MOVES:
        return known[0]
    if node.op == "neg" and known[0] is not None:
        return known[0].times(-1.0)
    if (node.op == "square" or (node.op == "integer_pow" and node.params["y"] == 2)) and known[0] is not None:
        return known[0].squared()
    if len(known) != 2:
        return None
    left, right = known
    if node.op in ("add", "sub"):
        left, right = left or _Moments(), right or _Moments()
        return left + (right if node.op == "add" else right.times(-1.0))
    if node.op == "mul" and left is not None and right is not None:
        return left.squared() if node.operands[0] is node.operands[1] else None
    if node.op not in ("mul", "div"):
        return None
    if left is not None:
        number = _number(node.operands[1])
        return None if not number else left.times(number if node.op == "mul" else 1 / number)
    number = _number(node.operands[0]) if node.op == "mul" and right is not None else None
    return None if number is None or right is None else right.times(number)


def _number(value: Value) -> float | None:
    """The number that a constant is everywhere."""
    if not value.is_const:
        return None
    array = np.asarray(value.const)
    return float(array.flat[0]) if array.size and bool((array == array.flat[0]).all()) else None
