"""Sorts, running sums and softmaxes of which little is read."""

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


def smallest(x: jax.Array) -> jax.Array:
    """The eight smallest of each row."""
    return -lax.top_k(-x, 8)[0]


def ninth_decile(x: jax.Array) -> jax.Array:
    """The quantile at 0.95, by its two neighbours among the largest."""
    place = 0.95 * (x.shape[-1] - 1)
    low = int(place)
    top = lax.top_k(x, x.shape[-1] - low)[0]
    return top[:, -1] * (1 - (place - low)) + top[:, -2] * (place - low)


def median_by_bisection(x: jax.Array) -> jax.Array:
    """The median of rows of even length: the bits of its lower half one by one."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    keys = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
    place = x.shape[-1] // 2 - 1

    def step(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = jnp.sum((keys <= middle[:, None]).astype(jnp.int32), -1) > place
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    ends = jnp.full(x.shape[0], -(2**31), jnp.int32), jnp.full(x.shape[0], 2**31 - 1, jnp.int32)
    found, _ = lax.fori_loop(0, 32, step, ends)
    value = lax.bitcast_convert_type(jnp.where(found < 0, found ^ jnp.int32(0x7FFFFFFF), found), jnp.float32)
    upto = jnp.sum(keys <= found[:, None], -1) > place + 1
    after = jnp.min(jnp.where(keys > found[:, None], x, jnp.inf), -1)
    return jnp.where(upto, value, (value + after) / 2)


def few_scores() -> Args:
    """One short row of numbers."""
    return (normal(1, 128),)


CASES: Final = [
    Case("order: sort(x)[:8]", lambda x: jnp.sort(x)[:, :8], smallest, scores),
    Case("order: -sort(-x)[:8]", lambda x: -jnp.sort(-x)[:, :8], lambda x: lax.top_k(x, 8)[0], scores),
    Case("order: sort(x)[-8:]", lambda x: jnp.sort(x)[:, -8:], lambda x: lax.top_k(x, 8)[0][:, ::-1], scores),
    Case("order: sort(x)[0]", lambda x: jnp.sort(x)[:, 0], lambda x: jnp.min(x, -1), scores),
    Case("order: sort(x)[-1]", lambda x: jnp.sort(x)[:, -1], lambda x: jnp.max(x, -1), scores),
    Case("order: sort(n)[0]", lambda x: jnp.sort(x)[:, 0], lambda x: jnp.min(x, -1), whole_scores),
    Case("order: argsort(x)[0]", lambda x: jnp.argsort(x)[:, 0], lambda x: jnp.argmin(x, -1), scores),
    Case("order: argsort(x)[-1]", lambda x: jnp.argsort(x)[:, -1], lambda x: jnp.argmax(x, -1), scores),
    Case("order: argsort(-x)[:8]", lambda x: jnp.argsort(-x)[:, :8], lambda x: lax.top_k(x, 8)[1], scores),
    Case(
        "order: sort(x)[:8] in bfloat16",
        lambda x: jnp.sort(x)[:, :8],
        smallest,
        half_scores,
    ),
    Case("order: quantile(x, 0.95)", lambda x: jnp.quantile(x, 0.95, -1), ninth_decile, scores),
    Case("order: cumsum(x)[-1]", lambda x: jnp.cumsum(x, -1)[:, -1], lambda x: jnp.sum(x, -1), more_scores),
    Case("order: cummax(x)[-1]", lambda x: lax.cummax(x, 1)[:, -1], lambda x: jnp.max(x, -1), more_scores),
    Case(
        "order: argmax(softmax(x))",
        lambda x: jnp.argmax(jax.nn.softmax(x), -1),
        lambda x: jnp.argmax(x, -1),
        more_scores,
    ),
    Case("order: median(x)", lambda x: jnp.median(x, -1), median_by_bisection, scores),
    Case(
        "order: top_k(softmax(x))[1]",
        lambda x: lax.top_k(jax.nn.softmax(x), 8)[1],
        lambda x: lax.top_k(x, 8)[1],
        more_scores,
    ),
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
