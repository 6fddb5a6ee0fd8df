"""Recurrences that choose: the last value that was taken, the best so far, and functions of single bits."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from lepton_jax.passes.loops._recurrence.solve import Carry, Parts, composed, history


def held(init: Any, value: Any, taken: Any, *, reverse: bool) -> Carry:
    """The carry, or the last value that was taken in its place."""

    def then(x: Parts, y: Parts) -> Parts:
        (before, first), (now, second) = x, y
        return before | now, jnp.where(now, second, first)

    any_taken, last = lax.associative_scan(then, (taken, value), reverse=reverse)
    return history(jnp.where(any_taken, last, init), init, reverse=reverse)


def bits(init: Any, low: Any, high: Any, *, reverse: bool) -> Carry:
    """A function of every single bit of the carry.

    Args:
        low: what the steps make of bits that are not set.
        high: what they make of bits that are.
    """

    def at(step: Parts, h: Any) -> Any:
        return (step[1] & h) | (step[0] & ~h)

    def then(x: Parts, y: Parts) -> Parts:
        return at(y, x[0]), at(y, x[1])

    return history(at(composed(then, (low, high), (), reverse), init), init, reverse=reverse)


def picked(init: Any, x: Any, *, op: str, asks: bool, reverse: bool) -> Carry:
    """The better of the carry and x, as where(x > h, x, h) says, NaN included.

    Args:
        op: the comparison.
        asks: whether it asks if x is better than h; otherwise if h is better than x.
    """
    better = _COMPARISONS[op]

    def then(first: Parts, second: Parts) -> Parts:
        (was_nan, old), (is_nan, new) = first, second
        if asks:
            return was_nan & is_nan, jnp.where(was_nan | better(new, old), new, old)
        return was_nan | is_nan, jnp.where(~is_nan & better(old, new), old, new)

    nan = x != x
    some, best = lax.associative_scan(then, (nan, x), reverse=reverse)
    if asks:
        return history(jnp.where(better(best, init), best, init), init, reverse=reverse)
    return history(jnp.where(~some & better(init, best), init, best), init, reverse=reverse)


_COMPARISONS: Final[dict[str, Any]] = {
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
}
