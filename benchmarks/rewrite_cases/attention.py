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


# By hand: one loop over the pairs of blocks that count


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


def by_hand(q: Any, k: Any, v: Any, back: int = 1 << 30, cap: float = 0.0) -> Any:
    """Causal attention, [batch, length, heads, width]."""
    batch, length, heads, width = q.shape
    flat = (x.transpose(0, 2, 1, 3).reshape(batch * heads, length, width) for x in (q, k, v))
    return _flash(*flat, back, cap).reshape(batch, heads, length, width).transpose(0, 2, 1, 3)


def cudnn(q: Any, k: Any, v: Any) -> Any:
    """The best form on an NVIDIA GPU."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def widened(q: Any, k: Any, v: Any) -> Any:
    """The form by hand for narrow numbers: all in float32."""
    return by_hand(*(x.astype(jnp.float32) for x in (q, k, v))).astype(q.dtype)


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
        functools.partial(by_hand, back=256, cap=30.0),
        arguments(1, 2048),
    ),
    Case("causal attention and its gradient", training(causal), training(by_hand), arguments(2, 1024)),
    Case(
        "causal attention in bfloat16",
        causal,
        widened,
        arguments(1, 1024, jnp.bfloat16),
        gpu=cudnn,
        gpu_args=arguments(4, 4096, jnp.bfloat16, 16, 128),
        tolerance=5e-2,
    ),
    Case(
        "causal attention in bfloat16 and its gradient",
        training_narrow(causal),
        training_narrow(widened),
        arguments(1, 1024, jnp.bfloat16),
        gpu=training_narrow(cudnn),
        gpu_args=arguments(4, 4096, jnp.bfloat16, 16, 128),
        tolerance=5e-2,
    ),
    Case("attention without a mask, 1024", unmasked, unmasked, arguments(1, 1024)),
    Case("short attention: nothing to gain", causal, causal, arguments(8, 128)),
]
