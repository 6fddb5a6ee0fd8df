"""Recurrences solved for all iterations at once, by a parallel scan over compositions of steps."""

from __future__ import annotations

from collections.abc import Callable
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


def affine(init: Any, a: Any, b: Any, *, reverse: bool, safe: bool, from_zero: bool) -> Carry:
    """h ← a·h + b.

    Args:
        from_zero: whether the first carry is zero.
        safe: whether no product of factors can overflow. Otherwise the loop runs step by step
            where the parallel form gives a number that is not finite.
    """
    first = b if from_zero else _first_in(b, a[-1 if reverse else 0] * init, reverse)
    h = _scan_affine(a, first, reverse)
    if not safe:
        h = _finite_or(h, lambda: _steps(_affine_step, init, (a, b), reverse))
    return history(h, init, reverse=reverse)


def matrix(init: Any, m: Any, b: Any, *, reverse: bool, from_zero: bool) -> Carry:
    """h ← h @ M + b, on the last axis; see `affine`."""
    first = b if from_zero else _first_in(b, jnp.matmul(init, m[-1 if reverse else 0]), reverse)
    h = _finite_or(_scan_matrix(m, first, reverse), lambda: _steps(_matrix_step, init, (m, b), reverse))
    return history(h, init, reverse=reverse)


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


def _scan_affine(a: Any, b: Any, reverse: bool) -> Any:
    def then(x: Any, y: Any) -> Any:
        (a1, b1), (a2, b2) = x, y
        return a1 * a2, a2 * b1 + b2

    return lax.associative_scan(then, (a, b), reverse=reverse)[1]


def _scan_matrix(m: Any, b: Any, reverse: bool) -> Any:
    def then(x: Any, y: Any) -> Any:
        (m1, b1), (m2, b2) = x, y
        return jnp.matmul(m1, m2), jnp.matmul(b1, m2) + b2

    rows = b[:, None, :] if b.ndim == 2 else b
    return lax.associative_scan(then, (m, rows), reverse=reverse)[1].reshape(b.shape)


def _affine_step(h: Any, parts: Any) -> tuple[Any, Any]:
    a, b = parts
    new = a * h + b
    return new, new


def _matrix_step(h: Any, parts: Any) -> tuple[Any, Any]:
    m, b = parts
    new = jnp.matmul(h, m) + b
    return new, new


def _steps(step: Any, init: Any, parts: Any, reverse: bool) -> Any:
    return lax.scan(step, init, parts, reverse=reverse)[1]


def _finite_or(h: Any, slow: Callable[[], Any]) -> Any:
    """`h` if it is finite, otherwise what `slow` gives."""
    return lax.cond(jnp.all(jnp.isfinite(h)), lambda: h, slow)


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
