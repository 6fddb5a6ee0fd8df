"""Attention by hand: in blocks with a running softmax, masked blocks left out, forward and backward."""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BLOCK: Final = 128


def _seen(first: Any, second: Any, back: int) -> Any:
    rows = first + lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), 0)
    distance = rows - second - lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), 1)
    return (distance >= 0) & (distance < back)


def _weights(q: Any, k: Any, pair: Any, back: int, cap: float) -> tuple[Any, Any]:
    """Scores of a block and their slope with respect to the products of queries and keys."""
    scores = jnp.einsum("nqd,nkd->nqk", q, k) / math.sqrt(q.shape[-1])
    slope = jnp.ones(())
    if cap:
        bent = jnp.tanh(scores / cap)
        scores, slope = cap * bent, 1 - bent**2
    return jnp.where(_seen(pair[0], pair[1], back), scores, -jnp.inf), slope / math.sqrt(q.shape[-1])


def _cut(x: Any, first: Any) -> Any:
    return lax.dynamic_slice_in_dim(x, first, BLOCK, 1)


def _put(x: Any, new: Any, first: Any) -> Any:
    return lax.dynamic_update_slice_in_dim(x, new, first, 1)


def _pairs(length: int, back: int) -> Any:
    starts = range(0, length, BLOCK)
    pairs = [(i, j) for i in starts for j in starts if j < i + BLOCK and i - j - BLOCK + 1 < back]
    return tuple(jnp.asarray(np.array(pairs, np.int32).T))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _flash(q: Any, k: Any, v: Any, back: int, cap: float) -> Any:
    return _forward(q, k, v, back, cap)[0]


def _forward(q: Any, k: Any, v: Any, back: int, cap: float) -> Any:
    def step(state: Any, pair: Any) -> Any:
        i, j = pair
        old, top, total = (_cut(x, i) for x in state)
        scores, _ = _weights(_cut(q, i), _cut(k, j), pair, back, cap)
        new = jnp.maximum(top, scores.max(-1))
        safe = jnp.where(jnp.isneginf(new), 0.0, new)
        shrink, weights = jnp.exp(top - safe), jnp.exp(scores - safe[..., None])
        old = old * shrink[..., None] + jnp.einsum("nqk,nkd->nqd", weights, _cut(v, j))
        made = (old, new, total * shrink + weights.sum(-1))
        return tuple(_put(x, y, i) for x, y in zip(state, made, strict=True)), None

    rows = q.shape[:2]
    start = (jnp.zeros((*rows, v.shape[-1])), jnp.full(rows, -jnp.inf), jnp.zeros(rows))
    (mixed, top, total), _ = lax.scan(step, start, _pairs(q.shape[1], back))
    out = mixed / total[..., None]
    return out, (q, k, v, out, top + jnp.log(total))


def _backward(back: int, cap: float, saved: Any, change: Any) -> Any:
    q, k, v, out, sums = saved
    inner = (change * out).sum(-1)

    def step(state: Any, pair: Any) -> Any:
        i, j = pair
        rows, columns, mine = _cut(q, i), _cut(k, j), _cut(change, i)
        scores, slope = _weights(rows, columns, pair, back, cap)
        weights = jnp.exp(scores - _cut(sums, i)[..., None])
        falls = jnp.einsum("nqd,nkd->nqk", mine, _cut(v, j)) - _cut(inner, i)[..., None]
        falls = weights * falls * slope
        made = (
            jnp.einsum("nqk,nkd->nqd", falls, columns),
            jnp.einsum("nqk,nqd->nkd", falls, rows),
            jnp.einsum("nqk,nqd->nkd", weights, mine),
        )
        firsts = (i, j, j)
        return tuple(_put(x, _cut(x, f) + y, f) for x, y, f in zip(state, made, firsts, strict=True)), None

    return lax.scan(step, tuple(map(jnp.zeros_like, (q, k, v))), _pairs(q.shape[1], back))[0]


_flash.defvjp(_forward, _backward)


# By hand, causal: one loop over blocks of queries, in it one over the blocks of keys that are seen whole

ROWS: Final = 256


def _block(x: Any, number: Any) -> Any:
    """[batch, length, heads, width] → [batch * heads, ROWS, width], float32."""
    x = lax.dynamic_slice_in_dim(x, number * ROWS, ROWS, 1)
    return x.transpose(0, 2, 1, 3).reshape(-1, ROWS, x.shape[-1]).astype(jnp.float32)


def _diagonal(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """The product, maxima and sums of a block on the diagonal: two halves, each as far as it sees."""
    halves = []
    for end in (ROWS // 2, ROWS):
        scores = jnp.einsum("nqd,nkd->nqk", q[:, end - ROWS // 2 : end], k[:, :end])
        seen = np.tril(np.ones((ROWS // 2, end), bool), end - ROWS // 2)
        scores = jnp.where(seen, scores, -jnp.inf)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        halves.append((weights @ v[:, :end], top, weights.sum(-1, keepdims=True)))
    mixed, top, total = (jnp.concatenate(x, 1) for x in zip(*halves, strict=True))
    return mixed, top, total


def _causal_forward(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    """The result, and the logarithms of the sums of the exponentials, [batch * heads, length]."""
    batch, length, heads, width = q.shape
    k, v = (x.transpose(0, 2, 1, 3).reshape(batch * heads, length, width) for x in (k, v))

    def of(x: Any, number: Any) -> Any:
        return lax.dynamic_slice_in_dim(x, number * ROWS, ROWS, 1).astype(jnp.float32)

    def row(number: Any, made: Any) -> Any:
        mine = _block(q, number) / math.sqrt(width)

        def step(j: Any, state: Any) -> Any:
            mixed, top, total = state
            scores = jnp.einsum("nqd,nkd->nqk", mine, of(k, j))
            new = jnp.maximum(top, scores.max(-1, keepdims=True))
            shrink, weights = jnp.exp(top - new), jnp.exp(scores - new)
            mixed = mixed * shrink + weights @ of(v, j)
            return mixed, new, total * shrink + weights.sum(-1, keepdims=True)

        start = _diagonal(mine, of(k, number), of(v, number))
        mixed, top, total = lax.fori_loop(0, number, step, start)
        mixed = (mixed / total).reshape(batch, heads, ROWS, width).transpose(0, 2, 1, 3).astype(q.dtype)
        sums = (top + jnp.log(total))[..., 0]
        return tuple(_put_rows(x, y, number) for x, y in zip(made, (mixed, sums), strict=True))

    made = (jnp.zeros_like(q), jnp.zeros((batch * heads, length)))
    out, sums = lax.fori_loop(0, length // ROWS, row, made)
    return out, sums


def _put_rows(x: Any, new: Any, number: Any) -> Any:
    return lax.dynamic_update_slice_in_dim(x, new, number * ROWS, 1)


def _flat(x: Any) -> Any:
    """[batch, length, heads, width] → [batch * heads, length, width], float32."""
    return x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[3]).astype(jnp.float32)


@jax.custom_vjp
def by_hand(q: Any, k: Any, v: Any) -> Any:
    """Causal attention, [batch, length, heads, width], in float32 inside."""
    return _causal_forward(q, k, v)[0]


def by_hand_with_sums(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    """The same without a derivative, and the logarithms of the sums, [batch, heads, queries]."""
    out, sums = _causal_forward(q, k, v)
    return out, sums.reshape(q.shape[0], q.shape[2], q.shape[1])


def _by_hand_forward(q: Any, k: Any, v: Any) -> Any:
    out, sums = _causal_forward(q, k, v)
    return out, (q, k, v, out, sums)


def _by_hand_backward(saved: Any, change: Any) -> Any:
    q, k, v, out, sums = saved
    batch, length, heads, width = q.shape
    made = _backward(1 << 30, 0.0, (*map(_flat, (q, k, v, out)), sums), _flat(change))
    return tuple(x.reshape(batch, heads, length, width).transpose(0, 2, 1, 3).astype(q.dtype) for x in made)


by_hand.defvjp(_by_hand_forward, _by_hand_backward)


def window_by_hand(q: Any, k: Any, v: Any) -> Any:
    """The last 256 keys, with capped scores."""
    batch, length, heads, width = q.shape
    flat = _flash(*map(_flat, (q, k, v)), 256, 30.0)
    return flat.reshape(batch, heads, length, width).transpose(0, 2, 1, 3)
