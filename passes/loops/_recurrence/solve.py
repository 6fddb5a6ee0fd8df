"""What solutions of recurrences are made of: carries of all iterations at once, and steps in a row."""

from __future__ import annotations

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
