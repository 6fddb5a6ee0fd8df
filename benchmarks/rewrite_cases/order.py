"""Sorts, running sums and softmaxes of which little is read.

The forms by hand keep what a sort promises: NaN comes last, equals keep their order.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import Case, normal

Args = tuple[Any, ...]


def scores() -> Args:
    """Rows of numbers."""
    return (normal(64, 4096),)


def more_scores() -> Args:
    """More rows of numbers."""
    return (normal(256, 4096),)


def half_scores() -> Args:
    """Rows of numbers of 16 bits."""
    return (normal(64, 4096, dtype=jnp.bfloat16),)


def whole_scores() -> Args:
    """Rows of whole numbers."""
    return ((normal(64, 4096) * 1000).astype(jnp.int32),)


def known(x: jax.Array, number: float) -> jax.Array:
    """The numbers, with another one in place of NaN: a sort puts NaN last, whatever its sign bit."""
    return jnp.where(jnp.isnan(x), number, x)


def largest(x: jax.Array) -> jax.Array:
    """The largest of each row, or NaN: the maximum of XLA's CPU backend may pass over NaN, a sum does not."""
    return jnp.where(jnp.isnan(jnp.sum(jnp.abs(x), -1)), jnp.nan, jnp.max(x, -1))


def smallest(x: jax.Array) -> jax.Array:
    """The eight smallest of each row, NaN last."""
    return jnp.take_along_axis(x, lax.top_k(-known(x, jnp.inf), 8)[1], -1)


def largest_known(x: jax.Array) -> jax.Array:
    """The eight largest of each row, NaN last."""
    return jnp.take_along_axis(x, lax.top_k(known(x, -jnp.inf), 8)[1], -1)


def last_eight(x: jax.Array) -> jax.Array:
    """The eight largest of each row in ascending order, NaN being larger than all."""
    return lax.top_k(known(x, jnp.nan), 8)[0][:, ::-1]


def last_place(x: jax.Array) -> jax.Array:
    """The place of the largest of each row, of equals the last; NaN is larger than all."""
    return x.shape[-1] - 1 - jnp.argmax(x[:, ::-1], -1)


def places_of_largest(x: jax.Array) -> jax.Array:
    """The places of the eight largest of each row, NaN last; zeros of both signs are equal."""
    return lax.top_k(known(jnp.where(x == 0, 0, x), -jnp.inf), 8)[1]


def ordered_keys(x: jax.Array) -> jax.Array:
    """Whole numbers that are ordered as the numbers are."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def middle_by_bisection(x: jax.Array, place: float) -> jax.Array:
    """What stands at a place of sorted rows, between two entries in proportion; NaN for rows with NaN.

    The bits of the lower entry are found one by one.
    """
    keys, lower = ordered_keys(x), int(place)

    def step(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = jnp.sum((keys <= middle[:, None]).astype(jnp.int32), -1) > lower
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    ends = jnp.full(x.shape[0], -(2**31), jnp.int32), jnp.full(x.shape[0], 2**31 - 1, jnp.int32)
    found, _ = lax.fori_loop(0, 32, step, ends)
    value = lax.bitcast_convert_type(jnp.where(found < 0, found ^ jnp.int32(0x7FFFFFFF), found), jnp.float32)
    upto = jnp.sum(keys <= found[:, None], -1) > lower + 1
    after = jnp.where(upto, value, jnp.min(jnp.where(keys > found[:, None], x, jnp.inf), -1))
    between = value * (1 - (place - lower)) + after * (place - lower)
    return jnp.where(jnp.isnan(x).any(-1), jnp.nan, between)


def few_scores() -> Args:
    """One short row of numbers."""
    return (normal(1, 128),)


def ranks(x: jax.Array) -> jax.Array:
    """The rank of each entry."""
    return jnp.argsort(jnp.argsort(x, -1), -1)


def ranks_by_scatter(x: jax.Array) -> jax.Array:
    """One sort, whose order is then undone."""
    order = jnp.argsort(x, -1)
    counts = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.put_along_axis(jnp.zeros_like(order), order, counts, -1, inplace=False)


CASES: Final = [
    Case("order: sort(x)[:8]", lambda x: jnp.sort(x)[:, :8], smallest, scores),
    Case("order: -sort(-x)[:8]", lambda x: -jnp.sort(-x)[:, :8], largest_known, scores),
    Case("order: sort(x)[-8:]", lambda x: jnp.sort(x)[:, -8:], last_eight, scores),
    Case("order: sort(x)[0]", lambda x: jnp.sort(x)[:, 0], lambda x: jnp.nanmin(x, -1), scores),
    Case(
        "order: sort(x)[-1]",
        lambda x: jnp.sort(x)[:, -1],
        largest,
        scores,
        gpu=lambda x: jnp.max(x, -1),
    ),
    Case("order: sort(n)[0]", lambda x: jnp.sort(x)[:, 0], lambda x: jnp.min(x, -1), whole_scores),
    Case(
        "order: argsort(x)[0]",
        lambda x: jnp.argsort(x)[:, 0],
        lambda x: jnp.argmin(known(x, jnp.inf), -1),
        scores,
    ),
    Case("order: argsort(x)[-1]", lambda x: jnp.argsort(x)[:, -1], last_place, scores),
    Case("order: argsort(-x)[:8]", lambda x: jnp.argsort(-x)[:, :8], places_of_largest, scores),
    Case(
        "order: sort(x)[:8] in bfloat16",
        lambda x: jnp.sort(x)[:, :8],
        smallest,
        half_scores,
    ),
    Case(
        "order: quantile(x, 0.95)",
        lambda x: jnp.quantile(x, 0.95, -1),
        lambda x: middle_by_bisection(x, 0.95 * (x.shape[-1] - 1)),
        scores,
    ),
    Case("order: cumsum(x)[-1]", lambda x: jnp.cumsum(x, -1)[:, -1], lambda x: jnp.sum(x, -1), more_scores),
    Case(
        "order: cummax(x)[-1]",
        lambda x: lax.cummax(x, 1)[:, -1],
        largest,
        more_scores,
        gpu=lambda x: jnp.max(x, -1),
    ),
    Case(
        "order: argmax(softmax(x))",
        lambda x: jnp.argmax(jax.nn.softmax(x), -1),
        lambda x: jnp.argmax(x, -1),
        more_scores,
    ),
    Case(
        "order: median(x)",
        lambda x: jnp.median(x, -1),
        lambda x: middle_by_bisection(x, 0.5 * (x.shape[-1] - 1)),
        scores,
    ),
    Case(
        "order: top_k(softmax(x))[1]",
        lambda x: lax.top_k(jax.nn.softmax(x), 8)[1],
        lambda x: lax.top_k(x, 8)[1],
        more_scores,
    ),
    Case("order: argsort(argsort(x))", ranks, ranks_by_scatter, scores),
    Case(
        "order: median of 128 (left alone)",
        lambda x: jnp.median(x, -1),
        lambda x: jnp.median(x, -1),
        few_scores,
    ),
    Case(
        "order: sort(n)[:8] (left alone)",
        lambda x: jnp.sort(x)[:, :8],
        lambda x: jnp.sort(x)[:, :8],
        whole_scores,
    ),
]
