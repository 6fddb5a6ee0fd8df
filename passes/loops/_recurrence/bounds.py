"""Recurrences of sums, factors and bounds, by a parallel scan over compositions of steps."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from lepton_jax.passes.loops._recurrence.solve import Carry, Parts, composed, history


def clamped(init: Any, shift: Any, *rest: Any, low: bool, high: bool, reverse: bool) -> Carry:
    """h ← min(max(h + shift, least), most), with those of the bounds that there are.

    Args:
        rest: least and most, each if there is one, and where steps forget the carry, if any does.
        low: whether there is a least.
        high: whether there is a most.
    """
    bounds, forgets = rest[: low + high], rest[low + high :]
    clip = functools.partial(_clip, low=low, high=high)

    def then(x: Parts, y: Parts) -> Parts:
        (by, *before), (more, *after) = x, y
        return _moved(1, by, more), *(clip(shifted(bound, more), tuple(after)) for bound in before)

    total, *limits = composed(then, (shift, *bounds), forgets, reverse)
    return history(clip(init + total, tuple(limits)), init, reverse=reverse)


def damped(init: Any, a: Any, b: Any, *rest: Any, low: bool, high: bool, reverse: bool) -> Carry:
    """h ← min(max(a·h + b, least), most), with those of the bounds that there are, and a from 0 to 1.

    Args:
        rest: as in `clamped`.
    """
    bounds, forgets = rest[: low + high], rest[low + high :]
    clip = functools.partial(_clip, low=low, high=high)

    def then(x: Parts, y: Parts) -> Parts:
        (a1, b1, *before), (a2, b2, *after) = x, y
        moved = [_moved(a2, bound, b2, stays=True) for bound in before]
        return a1 * a2, _moved(a2, b1, b2), *(clip(bound, tuple(after)) for bound in moved)

    factor, addend, *limits = composed(then, (a, b, *bounds), forgets, reverse)
    return history(clip(factor * init + addend, tuple(limits)), init, reverse=reverse)


def _clip(x: Any, bounds: Parts, *, low: bool, high: bool) -> Any:
    x = jnp.maximum(x, bounds[0]) if low else x
    return jnp.minimum(x, bounds[-1]) if high else x


def _moved(a: Any, x: Any, b: Any, *, stays: bool = False) -> Any:
    """a·x + b where bounds follow: an infinite addend is what bounds see of it, whatever was before.

    Args:
        stays: whether an infinite x stays, because it is a bound that there is not.
    """
    infinite = jnp.isinf(x)
    moved = a * jnp.where(infinite, jnp.zeros_like(x), x) + b
    return jnp.where(infinite if stays else infinite & jnp.isfinite(b), x, moved)


def shifted(bound: Any, by: Any) -> Any:
    """A bound after an addition; a bound that is infinite stays, whatever is added."""
    return jnp.where(jnp.isinf(bound), bound, bound + by)
