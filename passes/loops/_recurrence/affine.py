"""Recurrences h ← a·h + b, element by element, by a parallel scan over compositions of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from lepton_jax.passes.loops._recurrence.solve import Carry, Parts, composed, history, stepwise


def affine(init: Any, a: Any, b: Any, *forgets: Any, reverse: bool, from_zero: bool) -> Carry:
    """h ← a·h + b, where no product of factors can overflow.

    Args:
        forgets: where a step puts something else in the place of the carry, if any does.
        from_zero: whether the first carry is zero.
    """
    return history(_affine(init, a, b, forgets, reverse, from_zero), init, reverse=reverse)


def affine_or_stepwise(
    init: Any,
    a: Any,
    b: Any,
    *rest: Any,
    piece: Callable[..., list[Any]],
    mapped: tuple[bool, ...],
    carry: int,
    length: int,
    reverse: bool,
    from_zero: bool,
    forgetful: bool,
) -> Carry:
    """h ← a·h + b; where that gives a number that is not finite, the loop runs step by step.

    Args:
        rest: where steps forget the carry, if any does, then what the piece takes besides it; for
            `piece`, `mapped` and `carry` see `stepwise`.
        from_zero: whether the first carry is zero.
        forgetful: whether a step forgets the carry.
    """
    forgets, rest = rest[:forgetful], rest[forgetful:]
    h = _affine(init, a, b, forgets, reverse, from_zero)

    def slow() -> list[Any]:
        return stepwise(
            [init], rest, piece=piece, mapped=mapped, carries=(carry,), length=length, reverse=reverse
        )

    (h,) = lax.cond(jnp.all(jnp.isfinite(h)), lambda: [h], slow)
    return history(h, init, reverse=reverse)


def _first_in(b: Any, start: Any, reverse: bool) -> Any:
    """The addends, with what the initial carry becomes added to the first."""
    if reverse:
        return lax.concatenate([b[:-1], b[-1:] + start], 0)
    return lax.concatenate([b[:1] + start, b[1:]], 0)


def _affine(init: Any, a: Any, b: Any, forgets: Parts, reverse: bool, from_zero: bool) -> Any:
    """The values after every iteration."""
    at = -1 if reverse else 0
    start = 0 if from_zero else a[at] * init
    if forgets and not from_zero:
        start = jnp.where(forgets[0][at], 0, start)
    first = b if from_zero else _first_in(b, start, reverse)

    def then(x: Parts, y: Parts) -> Parts:
        (a1, b1), (a2, b2) = x, y
        return a1 * a2, a2 * b1 + b2

    return composed(then, (a, first), forgets, reverse)[1]
