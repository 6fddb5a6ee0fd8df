"""Recurrences solved for all iterations at once, by a parallel scan over compositions of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax.numpy as jnp
from jax import lax

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


def affine(init: Any, a: Any, b: Any, *, reverse: bool, from_zero: bool) -> Carry:
    """h ← a·h + b, where no product of factors can overflow.

    Args:
        from_zero: whether the first carry is zero.
    """
    return history(_affine(init, a, b, reverse, from_zero), init, reverse=reverse)


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
) -> Carry:
    """h ← a·h + b; where that gives a number that is not finite, the loop runs step by step.

    Args:
        rest: what the piece takes besides the carry; for `piece`, `mapped` and `carry` see `stepwise`.
        from_zero: whether the first carry is zero.
    """
    h = _affine(init, a, b, reverse, from_zero)

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
    return list(lax.scan(step, list(init), scanned, length=length, reverse=reverse)[1])


def clamped(init: Any, shift: Any, *bounds: Any, low: bool, high: bool, reverse: bool) -> Carry:
    """h ← min(max(h + shift, least), most), with those of the bounds that there are.

    Args:
        bounds: least and most, each if there is one.
        low: whether there is a least.
        high: whether there is a most.
    """

    def clip(x: Any, bounds: tuple[Any, ...]) -> Any:
        x = jnp.maximum(x, bounds[0]) if low else x
        return jnp.minimum(x, bounds[-1]) if high else x

    def then(x: tuple[Any, ...], y: tuple[Any, ...]) -> tuple[Any, ...]:
        (by, *before), (more, *after) = x, y
        return by + more, *(clip(shifted(bound, more), tuple(after)) for bound in before)

    total, *limits = lax.associative_scan(then, (shift, *bounds), reverse=reverse)
    return history(clip(init + total, tuple(limits)), init, reverse=reverse)


def shifted(bound: Any, by: Any) -> Any:
    """A bound after an addition; a bound that is infinite stays, whatever is added."""
    return jnp.where(jnp.isinf(bound), bound, bound + by)


def _first_in(b: Any, start: Any, reverse: bool) -> Any:
    """The addends, with what the initial carry becomes added to the first."""
    if reverse:
        return lax.concatenate([b[:-1], b[-1:] + start], 0)
    return lax.concatenate([b[:1] + start, b[1:]], 0)


def _affine(init: Any, a: Any, b: Any, reverse: bool, from_zero: bool) -> Any:
    """The values after every iteration."""
    first = b if from_zero else _first_in(b, a[-1 if reverse else 0] * init, reverse)

    def then(x: Any, y: Any) -> Any:
        (a1, b1), (a2, b2) = x, y
        return a1 * a2, a2 * b1 + b2

    return lax.associative_scan(then, (a, first), reverse=reverse)[1]


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
