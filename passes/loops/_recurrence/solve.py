"""Recurrences solved for all iterations at once, by a parallel scan over compositions of steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

STEPWISE: Final = "step_by_step"
"""The scope of the loops that run where a parallel form cannot be trusted: they stay loops."""

Parts = tuple[Any, ...]
Then = Callable[[Parts, Parts], Parts]
Carry = tuple[Any, Any, Any]
"""The carry after every iteration, before every iteration, and in the end."""


def history(h: Any, init: Any, *, reverse: bool) -> Carry:
    """What the loop sees of a carry whose values after all iterations are `h`.

    Args:
        h: the values after the iterations, in the order in which they lie in memory.
        init: the value before the first iteration, which is the last in memory for `reverse`.
    """
    first = init[None]
    if reverse:
        return h, lax.concatenate([h[1:], first], 0), h[0]
    return h, lax.concatenate([first, h[:-1]], 0), h[-1]


def count(init: Any, *, length: int, by: int, reverse: bool) -> Carry:
    """A carry that grows by a whole number."""
    steps = lax.iota(init.dtype, length)
    steps = lax.rev(steps, (0,)) if reverse else steps
    before = init + steps * by
    return before + by, before, init + jnp.asarray(by * length, init.dtype)


def accumulate(init: Any, terms: Any, *, op: str, reverse: bool) -> Carry:
    """A carry that accumulates: sums, products, running maxima and minima."""
    start = jnp.expand_dims(init, 0)
    moved = lax.concatenate([terms, start] if reverse else [start, terms], 0)
    whole = _CUMULATIVE[op](moved, axis=0, reverse=reverse)
    if reverse:
        return whole[:-1], whole[1:], whole[0]
    return whole[1:], whole[:-1], whole[-1]


_CUMULATIVE: Final[dict[str, Any]] = {
    "add": lax.cumsum,
    "mul": lax.cumprod,
    "max": lax.cummax,
    "min": lax.cummin,
}


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


def stepwise(
    init: Sequence[Any],
    rest: Sequence[Any],
    *,
    piece: Callable[..., list[Any]],
    mapped: tuple[bool, ...],
    carries: tuple[int, ...],
    length: int,
    reverse: bool,
) -> list[Any]:
    """Carries after all iterations, by the loop as it was written.

    Args:
        init: the initial carries.
        rest: what the piece takes besides the carries.
        piece: a step, which gives the next carries.
        mapped: which of the rest hold a value for each iteration.
        carries: the positions of the carries among the piece's arguments.
    """

    def step(state: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        moving, given = iter(xs), dict(zip(carries, state, strict=True))
        others = iter([next(moving) if m else x for m, x in zip(mapped, rest, strict=True)])
        count = len(carries) + len(rest)
        new = piece(*(given[i] if i in given else next(others) for i in range(count)))
        return list(new), list(new)

    scanned = [x for m, x in zip(mapped, rest, strict=True) if m]
    with jax.named_scope(STEPWISE):
        return list(lax.scan(step, list(init), scanned, length=length, reverse=reverse)[1])


def composed(then: Then, steps: Parts, forgets: Parts, reverse: bool) -> Parts:
    """What the steps up to each iteration make together.

    Args:
        then: composes two steps.
        steps: the coefficients of all steps.
        forgets: where a step puts something else in the place of the carry, if any does: what was
            before is not looked at there, so that infinities and NaN do not come through.
    """
    if not forgets:
        return tuple(lax.associative_scan(then, steps, reverse=reverse))

    def then_or_anew(x: Parts, y: Parts) -> Parts:
        (before, *first), (anew, *second) = x, y
        old = tuple(jnp.where(anew, jnp.zeros_like(part), part) for part in first)
        return before | anew, *then(old, tuple(second))

    return tuple(lax.associative_scan(then_or_anew, (*forgets, *steps), reverse=reverse)[1:])


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


def reduced(init: Any, terms: Any, op: str) -> Any:
    """A carry in the end, from all that it accumulates; the dtype stays."""
    if op == "add":
        return init + jnp.sum(terms, 0, dtype=terms.dtype)
    if op == "mul":
        return init * jnp.prod(terms, 0, dtype=terms.dtype)
    if op in ("max", "min"):
        kind = jnp.max if op == "max" else jnp.min
        join = lax.max if op == "max" else lax.min
        return join(init, kind(terms, 0))
    join = {"and": lax.bitwise_and, "or": lax.bitwise_or, "xor": lax.bitwise_xor}[op]
    if terms.dtype == jnp.bool_ and op != "xor":
        return join(init, jnp.all(terms, 0) if op == "and" else jnp.any(terms, 0))
    neutral = jnp.zeros((), terms.dtype)
    return join(init, lax.reduce(terms, ~neutral if op == "and" else neutral, join, (0,)))
