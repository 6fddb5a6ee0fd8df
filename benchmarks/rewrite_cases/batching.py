"""Many small products, weights that are the same for all batches, repeated keys and values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import Case, normal

Args = tuple[Any, ...]
Program = Callable[..., Any]


def experts(count: int, rows: int, inward: int, outward: int) -> Args:
    """Inputs and weights for each of several layers."""
    return normal(count, rows, inward), normal(count, inward, outward, seed=1)


def one_by_one(x: jax.Array, w: jax.Array) -> jax.Array:
    """One layer after another."""
    return jnp.stack([jnp.tanh(x[i] @ w[i]) for i in range(x.shape[0])])


def together(x: jax.Array, w: jax.Array) -> jax.Array:
    """All layers at once."""
    return jnp.tanh(jnp.einsum("bij,bjk->bik", x, w))


def mlps() -> Args:
    """Inputs, weights and biases of several two-layer networks."""
    return normal(32, 16, 64), normal(32, 64, 64, seed=1), normal(32, 64, seed=2), normal(32, 64, 32, seed=3)


def mlps_one_by_one(x: jax.Array, w: jax.Array, b: jax.Array, v: jax.Array) -> jax.Array:
    """One network after another."""
    return jnp.stack([jax.nn.silu(x[i] @ w[i] + b[i]) @ v[i] for i in range(32)])


def mlps_together(x: jax.Array, w: jax.Array, b: jax.Array, v: jax.Array) -> jax.Array:
    """All networks at once."""
    return jnp.einsum("bij,bjk->bik", jax.nn.silu(jnp.einsum("bij,bjk->bik", x, w) + b[:, None]), v)


def heads() -> Args:
    """Inputs, and the weights of 32 small heads."""
    return normal(16, 64), normal(32, 64, 64, seed=1)


def copied(x: jax.Array, w: jax.Array) -> jax.Array:
    """All heads at once, with a copy of the input for each."""
    return jnp.einsum("bij,bjk->bik", jnp.broadcast_to(x, (w.shape[0], *x.shape)), w)


def weights_for_all(x: jax.Array, w: jax.Array) -> jax.Array:
    """A batched product with the same weights for each batch."""
    return jnp.matmul(x, jnp.broadcast_to(w, (x.shape[0], *w.shape)))


def flat(x: jax.Array, w: jax.Array) -> jax.Array:
    """One product with all rows."""
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], -1)


def queries(length: int = 64) -> Args:
    """Queries of 16 heads and keys of two."""
    return normal(8, 16, length, 64), normal(8, 2, 512, 64, seed=1)


def scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Scores with repeated keys."""
    return jnp.einsum("bhqd,bhkd->bhqk", q, jnp.repeat(k, 8, axis=1))


def grouped_scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Scores by groups."""
    grouped = q.reshape(8, 2, 8, *q.shape[2:])
    return jnp.einsum("bgrqd,bgkd->bgrqk", grouped, k).reshape(8, 16, q.shape[2], 512)


def mixed(p: jax.Array, v: jax.Array) -> jax.Array:
    """Values weighted, repeated."""
    return jnp.einsum("bhqk,bhkd->bhqd", p, jnp.repeat(v, 8, axis=1))


def grouped_mixed(p: jax.Array, v: jax.Array) -> jax.Array:
    """Values weighted, by groups."""
    return jnp.einsum("bgrqk,bgkd->bgrqd", p.reshape(8, 2, 8, 64, 512), v).reshape(8, 16, 64, 64)


def projections(x: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
    """Queries, keys and values, each by its own product."""
    return x @ q, x @ k, x @ v


def stacked_projections(x: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, o: jax.Array) -> jax.Array:
    """Products with separate weights, stacked."""
    return jnp.stack([x @ w for w in (q, k, v, o)])


def projection_weights(count: int) -> Args:
    """Eight rows and square weights."""
    return (normal(8, 512), *(normal(512, 512, seed=i) for i in range(1, count + 1)))


def calls(x: jax.Array, w: jax.Array) -> jax.Array:
    """A layer called on the parts of an array, one after another."""
    return jnp.stack([jnp.tanh(x[i] @ w) for i in range(x.shape[0])])


def one_call(x: jax.Array, w: jax.Array) -> jax.Array:
    """The layer called once."""
    return jnp.tanh(x @ w)


def chosen(x: jax.Array, w: jax.Array, c: jax.Array) -> jax.Array:
    """Both branches, and a choice between them by one number."""
    return jnp.where(c > 0, x @ w, jnp.tanh(x))


def branched(x: jax.Array, w: jax.Array, c: jax.Array) -> jax.Array:
    """The branch that is chosen."""
    result: jax.Array = lax.cond(c > 0, lambda: x @ w, lambda: jnp.tanh(x))
    return result


def chosen_by_vmap(x: jax.Array, w: jax.Array, c: jax.Array) -> jax.Array:
    """A cond under vmap, whose predicate is the same for all rows."""

    def row(x: jax.Array, c: jax.Array) -> jax.Array:
        result: jax.Array = lax.cond(c > 0, lambda: x @ w, lambda: jnp.tanh(x))
        return result

    return jax.vmap(row)(x, jnp.broadcast_to(c, (x.shape[0],)))


def choice(number: float) -> Args:
    """Rows, square weights and a number."""
    return normal(256, 512), normal(512, 512, seed=1), jnp.float32(number)


def gates(x: jax.Array, w: jax.Array) -> Any:
    """Three products with parts of one weight."""
    a, b, c = jnp.split(w, 3, axis=1)
    return jnp.tanh(x @ a), jax.nn.sigmoid(x @ b), x @ c


def gates_at_once(x: jax.Array, w: jax.Array) -> Any:
    """One product, cut into three parts."""
    a, b, c = jnp.split(x @ w, 3, axis=1)
    return jnp.tanh(a), jax.nn.sigmoid(b), c


def cell(step: Program, x: jax.Array, w: jax.Array) -> jax.Array:
    """A recurrent layer of three gates."""

    def next_state(h: jax.Array, xt: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b, c = step(h, w)
        h = a * b + jnp.tanh(c) + xt
        return h, h

    return lax.scan(next_state, jnp.zeros(x.shape[1:]), x)[1]


def indexed_projections(x: jax.Array, w: jax.Array) -> Any:
    """Queries, keys and values, with weights that are stacked."""
    return x @ w[0], x @ w[1], x @ w[2]


def batched_projections(x: jax.Array, w: jax.Array) -> Any:
    """The same by one batched product."""
    y = jnp.matmul(jnp.broadcast_to(x, (3, *x.shape)), w)
    return y[0], y[1], y[2]


CASES: Final = [
    Case("batching: 32 products of 16×64×64", one_by_one, together, partial(experts, 32, 16, 64, 64)),
    Case("batching: 64 products of 4×16×16", one_by_one, together, partial(experts, 64, 4, 16, 16)),
    Case("batching: 8 products of 1×64×64", one_by_one, together, partial(experts, 8, 1, 64, 64)),
    Case("batching: 8 products of 256×256×256", one_by_one, together, partial(experts, 8, 256, 256, 256)),
    Case("batching: 32 small networks", mlps_one_by_one, mlps_together, mlps),
    Case(
        "batching: 32 small heads",
        lambda x, w: jnp.stack([x @ w[i] for i in range(32)]),
        copied,
        heads,
    ),
    Case(
        "batching: same weights, 64 batches of one row",
        weights_for_all,
        flat,
        lambda: (normal(64, 1, 256), normal(256, 256, seed=1)),
    ),
    Case(
        "batching: same weights, 32 batches of 16 rows",
        weights_for_all,
        flat,
        lambda: (normal(32, 16, 256), normal(256, 256, seed=1)),
    ),
    Case("batching: scores of grouped queries", scores, grouped_scores, queries),
    Case("batching: scores of one grouped query", scores, grouped_scores, partial(queries, 1)),
    Case(
        "batching: values of grouped queries",
        mixed,
        grouped_mixed,
        lambda: (normal(8, 16, 64, 512), normal(8, 2, 512, 64, seed=1)),
    ),
    Case(
        "batching: a layer on 8 rows",
        calls,
        one_call,
        lambda: (normal(8, 512), normal(512, 512, seed=1)),
    ),
    Case(
        "batching: a layer on 8 parts of 16 rows",
        calls,
        one_call,
        lambda: (normal(8, 16, 512), normal(512, 512, seed=1)),
    ),
    Case("batching: where of a product, not chosen", chosen, branched, partial(choice, -1)),
    Case("batching: where of a product, chosen", chosen, branched, partial(choice, 1)),
    Case("batching: cond under vmap, not chosen", chosen_by_vmap, branched, partial(choice, -1)),
    Case("batching: cond under vmap, chosen", chosen_by_vmap, branched, partial(choice, 1)),
    Case(
        "batching: three parts of one weight, 8 rows",
        gates,
        gates_at_once,
        lambda: (normal(8, 512), normal(512, 1536, seed=1) / 16),
    ),
    Case(
        "batching: three parts of one weight, 1024 rows (left alone)",
        gates,
        gates,
        lambda: (normal(1024, 128), normal(128, 384, seed=1) / 16),
    ),
    Case(
        "batching: three parts of one weight in a loop",
        partial(cell, gates),
        partial(cell, gates_at_once),
        lambda: (normal(64, 16, 256), normal(256, 768, seed=1) / 16),
    ),
    Case(
        "batching: three of a stack of weights, 8 rows",
        indexed_projections,
        batched_projections,
        lambda: (normal(8, 512), normal(3, 512, 512, seed=1)),
    ),
    Case(
        "batching: q, k and v (left alone)",
        projections,
        projections,
        partial(projection_weights, 3),
    ),
    Case(
        "batching: separate weights, stacked (left alone)",
        stacked_projections,
        stacked_projections,
        partial(projection_weights, 4),
    ),
    Case(
        "batching: 4 products of 4×8×8 (left alone)",
        one_by_one,
        one_by_one,
        partial(experts, 4, 4, 8, 8),
    ),
]
