"""Attention: in blocks with a running softmax, masked blocks left out, forward and backward."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.rewrite_cases._case import Case, normal

BLOCK: Final = 128


def scores_of(q: Any, k: Any) -> Any:
    """[batch, heads, queries, keys]."""
    return jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])


def mix(weights: Any, v: Any) -> Any:
    """[batch, queries, heads, width]."""
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def causal(q: Any, k: Any, v: Any) -> Any:
    """Causal attention as people write it."""
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    return mix(jax.nn.softmax(jnp.where(mask, scores_of(q, k), -jnp.inf), axis=-1), v)


def filled(q: Any, k: Any, v: Any) -> Any:
    """The same with a mask of very low numbers and the softmax spelled out."""
    mask = jnp.arange(q.shape[1])[:, None] >= jnp.arange(k.shape[1])
    scores = jnp.where(mask, scores_of(q, k), -1e9)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    return mix(weights / weights.sum(-1, keepdims=True), v)


def library(q: Any, k: Any, v: Any) -> Any:
    """What `jax.nn` calls attention."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def unmasked(q: Any, k: Any, v: Any) -> Any:
    """Every query sees every key."""
    return mix(jax.nn.softmax(scores_of(q, k), axis=-1), v)


def window(q: Any, k: Any, v: Any) -> Any:
    """The last 256 keys, with capped scores."""
    distance = jnp.arange(q.shape[1])[:, None] - jnp.arange(k.shape[1])
    scores = 30.0 * jnp.tanh(scores_of(q, k) / 30.0)
    return mix(jax.nn.softmax(jnp.where((distance >= 0) & (distance < 256), scores, -jnp.inf)), v)


def training(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Loss and gradients."""
    return jax.value_and_grad(lambda q, k, v: (fun(q, k, v) ** 2).sum(), (0, 1, 2))


# By hand, with a window or capped scores, and all gradients: one loop over the pairs of blocks that count


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


def cudnn(q: Any, k: Any, v: Any) -> Any:
    """The best form on an NVIDIA GPU."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def training_narrow(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Loss, summed in float32, and gradients."""
    return jax.value_and_grad(lambda q, k, v: (fun(q, k, v).astype(jnp.float32) ** 2).mean(), (0, 1, 2))


def arguments(
    batch: int, length: int, dtype: Any = jnp.float32, heads: int = 8, width: int = 64
) -> Callable[[], tuple[Any, ...]]:
    """Queries, keys and values."""
    return lambda: tuple(normal(batch, length, heads, width, seed=s, dtype=dtype) for s in range(3))


CASES: Final[list[Case]] = [
    *(
        Case(f"causal attention, {length}", causal, by_hand, arguments(batch, length))
        for batch, length in ((2, 1024), (2, 2048), (1, 4096))
    ),
    Case("causal attention, softmax by hand", filled, by_hand, arguments(2, 1024)),
    Case("jax.nn.dot_product_attention", library, by_hand, arguments(2, 1024)),
    Case(
        "window of 256, capped",
        window,
        window_by_hand,
        arguments(1, 2048),
    ),
    Case("causal attention and its gradient", training(causal), training(by_hand), arguments(2, 1024)),
    Case(
        "causal attention in bfloat16",
        causal,
        by_hand,
        arguments(1, 1024, jnp.bfloat16),
        gpu=cudnn,
        gpu_args=arguments(4, 4096, jnp.bfloat16, 16, 128),
        tolerance=5e-2,
    ),
    Case(
        "causal attention in bfloat16 and its gradient",
        training_narrow(causal),
        training_narrow(by_hand),
        arguments(1, 1024, jnp.bfloat16),
        gpu=training_narrow(cudnn),
        gpu_args=arguments(4, 4096, jnp.bfloat16, 16, 128),
        tolerance=5e-2,
    ),
    Case("attention without a mask, 1024", unmasked, unmasked, arguments(1, 1024)),
    Case("short attention: nothing to gain", causal, causal, arguments(8, 128)),
]
