"""Arithmetic on intervals: where the result lies when the operands lie between bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from lepton_jax.ir._facts.dtypes import float_limits, kind_of
from lepton_jax.ir._facts.lattice import Claims, Facts

Interval = tuple[float, float]
SLACK: Final = 1 + 2.0**-5
"""Bounds of floats are widened by this factor after an operation that rounds, in whatever dtype."""


def ends(f: Facts) -> Interval:
    """The bounds as an interval."""
    return f.least, f.most


def claim(interval: Interval, dtype: Any) -> Claims:
    """The claims of a result that lies in the interval before it is rounded.

    Bounds of floats get room for rounding; those that are too small for the dtype become zero.
    """
    least, most = interval
    if kind_of(dtype) == "float":
        tiny = float_limits(dtype)[1] * 2
        least = min(least, -tiny) * SLACK if least < 0 else least / SLACK if least > tiny else 0.0
        most = max(most, tiny) * SLACK if most > 0 else most / SLACK if most < -tiny else 0.0
    return {"least": least, "most": most}


def times(a: float, b: float) -> float:
    """The product of bounds, where zero times infinity is zero: infinity is only ever neared."""
    return a * b if a and b else 0


def product(a: Interval, b: Interval) -> Interval:
    """All products."""
    corners = [times(x, y) for x in a for y in b]
    return min(corners), max(corners)


def total(a: Interval, b: Interval) -> Interval:
    """All sums."""
    return a[0] + b[0], a[1] + b[1]


def negated(a: Interval) -> Interval:
    """All negatives."""
    return -a[1], -a[0]


def magnitude(a: Interval) -> Interval:
    """All absolute values."""
    if a[0] >= 0:
        return a
    return (-a[1], -a[0]) if a[1] <= 0 else (0, max(-a[0], a[1]))


def power(a: Interval, exponent: int) -> Interval:
    """All powers with a positive exponent."""
    low, high = (_power(x, exponent) for x in (magnitude(a) if exponent % 2 == 0 else a))
    return low, high


def _power(x: float, exponent: int) -> float:
    try:
        return x**exponent
    except OverflowError:
        return math.inf if x > 0 or exponent % 2 == 0 else -math.inf


def mapped(function: Callable[[float], float], a: Interval) -> Interval:
    """The image of a growing function that may overflow to infinity."""
    return _safe(function, a[0]), _safe(function, a[1])


def _safe(function: Callable[[float], float], x: float) -> float:
    try:
        return function(x)
    except OverflowError:
        return math.copysign(math.inf, x)


def quotient(a: Interval, b: Interval) -> Interval:
    """All quotients by divisors of one sign that are not zero."""
    if b[1] <= 0:
        a, b = negated(a), negated(b)
    corners = [_over(x, y) for x in a for y in b]
    return min(corners), max(corners)


def _over(x: float, y: float) -> float:
    if x == 0 or y == math.inf:
        return 0.0
    return x / y if y else math.copysign(math.inf, x)


def infinite(f: Facts) -> bool:
    """Whether an element may be an infinity."""
    return f.most == math.inf or f.least == -math.inf
