"""Products of batches of matrices, as attention's, where the operands or the result are turned."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import Case, normal

HEADS, WIDTH = 12, 64

Args = tuple[Any, ...]


def scores(q: Any, k: Any) -> Any:
    """q [batch, rows, heads, width] times k: [batch, heads, rows, length]."""
    return jnp.einsum("bqhd,bkhd->bhqk", q, k)


def scores_batch_first(q: Any, k: Any) -> Any:
    """The same, with batches first before the product."""
    q, k = (lax.transpose(x, (0, 2, 1, 3)) for x in (q, k))
    return lax.dot_general(q, k, (((3,), (3,)), ((0, 1), (0, 1))))


def mixed(weights: Any, v: Any) -> Any:
    """Weights [batch, heads, rows, length] times v [batch, length, heads, width]."""
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def mixed_in_rows(weights: Any, v: Any) -> Any:
    """The same, with the weights on the left."""
    product = lax.dot_general(weights, v, (((3,), (1,)), ((0, 1), (0, 2))))
    return lax.transpose(product, (0, 2, 1, 3))


def attention(x: Any, w: Any, first: Any, second: Any) -> Any:
    """x [batch, length, features], w [features, 3 · heads · width], after a bias of one."""
    shape = (*x.shape[:2], HEADS, WIDTH)
    q, k, v = (part.reshape(shape) for part in jnp.split(x @ w + 1, 3, axis=-1))
    return second(jax.nn.softmax(first(q, k) / WIDTH**0.5), v).reshape(*x.shape[:2], -1)


def weighted(weights: Any, v: Any, second: Any) -> Any:
    """Values that were just computed."""
    return second(weights * 2, v + 1)


def _scored(q: Any, k: Any, first: Any) -> Any:
    return first(q * 2, k + 1)


def _attended(batch: int, length: int) -> Args:
    return normal(batch, length, 128), normal(128, 3 * HEADS * WIDTH, seed=1) / 12


def _heads(rows: int, length: int) -> Args:
    return normal(2, HEADS, rows, length), normal(2, length, HEADS, WIDTH, seed=1)


def _rows(rows: int, length: int) -> Args:
    return normal(2, rows, HEADS, WIDTH), normal(2, length, HEADS, WIDTH, seed=1)


CASES: Final = (
    *(
        Case(
            f"batches: attention, {batch} of {length} tokens",
            partial(attention, first=scores, second=mixed),
            partial(attention, first=scores_batch_first, second=mixed_in_rows),
            partial(_attended, batch, length),
        )
        for batch, length in ((1, 128), (8, 128), (1, 512))
    ),
    Case(
        "batches: weighted values, just computed",
        partial(weighted, second=mixed),
        partial(weighted, second=mixed_in_rows),
        partial(_heads, 128, 128),
    ),
    Case("batches: weighted values, from memory", mixed, mixed_in_rows, partial(_heads, 128, 128)),
    Case(
        "batches: scores, just computed",
        partial(_scored, first=scores),
        partial(_scored, first=scores_batch_first),
        partial(_rows, 16, 256),
    ),
    Case("batches: scores, from memory (stays)", scores, scores, partial(_rows, 128, 128)),
    Case("batches: values of one row, from memory (stays)", mixed, mixed, partial(_heads, 1, 512)),
)
