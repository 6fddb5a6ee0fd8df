"""Attention as people write it: functions of arrays, and their arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

B, T, H, D = 2, 24, 4, 8

Form = tuple[Callable[..., Any], tuple[Any, ...]]


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def qkv(dtype: Any = jnp.float32, kv_heads: int = H) -> tuple[jax.Array, ...]:
    """Queries, keys and values, [batch, length, heads, width]."""
    shapes = ((B, T, H, D), (B, T, kv_heads, D), (B, T, kv_heads, D))
    return tuple(normal(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes))


def scores_of(q: Any, k: Any) -> Any:
    """[batch, heads, queries, keys]."""
    return jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)


def mix(weights: Any, v: Any) -> Any:
    """[batch, queries, heads, width]."""
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def causal() -> Any:
    """[queries, keys], True where a query sees a key."""
    return jnp.tril(jnp.ones((T, T), bool))


def plain(q: Any, k: Any, v: Any) -> Any:
    """No mask."""
    return mix(jax.nn.softmax(scores_of(q, k)), v)


def masked(q: Any, k: Any, v: Any) -> Any:
    """Causal, filled with -inf."""
    return mix(jax.nn.softmax(jnp.where(causal(), scores_of(q, k), -jnp.inf)), v)


def filled(q: Any, k: Any, v: Any) -> Any:
    """Causal, filled with a very low number; the scale is on the queries."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q * 0.3, k)
    return mix(jax.nn.softmax(jnp.where(causal(), scores, -1e9)), v)


def biased_mask(q: Any, k: Any, v: Any) -> Any:
    """Causal by a bias of -inf; the scale is on the keys."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k * 0.3)
    return mix(jax.nn.softmax(scores + jnp.where(causal(), 0.0, -jnp.inf)), v)


def manual(q: Any, k: Any, v: Any) -> Any:
    """The softmax spelled out."""
    scores = scores_of(q, k)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    return mix(weights / weights.sum(-1, keepdims=True), v)


def divided_last(q: Any, k: Any, v: Any) -> Any:
    """Divided after the product."""
    scores = scores_of(q, k)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    return jnp.einsum("bhqk,bkhd->bhqd", weights, v) / weights.sum(-1, keepdims=True)


def without_maximum(q: Any, k: Any, v: Any) -> Any:
    """Nothing is subtracted, and the inverse of the sum is multiplied."""
    weights = jnp.exp(scores_of(q, k))
    return mix(weights * (1 / weights.sum(-1, keepdims=True)), v)


def with_logsumexp(q: Any, k: Any, v: Any) -> Any:
    """The logarithm of the sums is a result too."""
    scores = scores_of(q, k)
    top = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return mix(weights / total, v), top + jnp.log(total)


def one_head(q: Any, k: Any, v: Any) -> Any:
    """Matrices alone; fewer keys than queries, and wider values."""
    return jax.nn.softmax(q @ k.T / math.sqrt(D)) @ v


def repeated(q: Any, k: Any, v: Any) -> Any:
    """Grouped queries by repeated keys."""
    k, v = jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)
    return masked(q, k, v)


def grouped(q: Any, k: Any, v: Any) -> Any:
    """Grouped queries by another axis."""
    q = q.reshape(B, T, 2, 2, D)
    scores = jnp.where(causal(), jnp.einsum("btgrd,bsgd->bgrts", q, k), -jnp.inf)
    return jnp.einsum("bgrts,bsgd->btgrd", jax.nn.softmax(scores), v).reshape(B, T, H, D)


def one_key_head(q: Any, k: Any, v: Any) -> Any:
    """All heads share keys and values."""
    weights = jax.nn.softmax(jnp.einsum("bthd,bsd->bhts", q, k[:, :, 0]))
    return jnp.einsum("bhts,bsd->bthd", weights, v[:, :, 0])


def alibi(q: Any, k: Any, v: Any, slopes: Any) -> Any:
    """A penalty for distance, of another slope for each head."""
    distance = jnp.arange(T)[None, :] - jnp.arange(T)[:, None]
    scores = scores_of(q, k) + slopes[:, None, None] * jnp.minimum(distance, 0)
    return mix(jax.nn.softmax(jnp.where(distance > 0, -1e30, scores)), v)


def window_and_cap(q: Any, k: Any, v: Any) -> Any:
    """A sliding window and capped scores."""
    row, column = jnp.meshgrid(jnp.arange(T), jnp.arange(T), indexing="ij")
    mask = (row >= column) & (row - column < 7)
    return mix(jax.nn.softmax(jnp.where(mask, 5 * jnp.tanh(scores_of(q, k) / 5), -jnp.inf)), v)


def padded(q: Any, k: Any, v: Any, valid: Any) -> Any:
    """Causal and padded on the left: some rows see nothing and average everything."""
    mask = valid[:, None, None, :] & causal()
    return mix(jax.nn.softmax(jnp.where(mask, scores_of(q, k), -1e9)), v)


def boolean(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Any mask of queries and keys."""
    return mix(jax.nn.softmax(jnp.where(mask, scores_of(q, k), -jnp.inf)), v)


def biased(q: Any, k: Any, v: Any, bias: Any) -> Any:
    """A bias of its own for each head, query and key."""
    return mix(jax.nn.softmax(scores_of(q, k) + bias), v)


def relative(q: Any, k: Any, v: Any, positions: Any) -> Any:
    """Scores of relative positions are a second product."""
    return mix(jax.nn.softmax(scores_of(q, k) + jnp.einsum("bqhd,qkd->bhqk", q, positions)), v)


def wide_softmax(q: Any, k: Any, v: Any) -> Any:
    """The softmax of narrow scores in float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    return mix(jax.nn.softmax(scores).astype(v.dtype), v)


def keys_first(q: Any, k: Any, v: Any) -> Any:
    """The keys are the first operand, and the softmax is over a middle axis."""
    weights = jax.nn.softmax(jnp.einsum("bkhd,bqhd->bhkq", k, q), axis=2)
    return jnp.einsum("bhkq,bkhd->bqhd", weights, v)


def packed(x: Any) -> Any:
    """Queries, keys and values out of one array."""
    q, k, v = x.reshape(B, T, 3, H, D).transpose(2, 0, 3, 1, 4)
    weights = jax.nn.softmax(jnp.where(causal(), q @ k.mT, -jnp.inf))
    return (weights @ v).swapaxes(1, 2).reshape(B, T, H * D)


def mapped(q: Any, k: Any, v: Any) -> Any:
    """One head under two vmaps."""
    return jax.vmap(jax.vmap(one_head, 1, 1))(q, k, v)


def in_scan(q: Any, k: Any, v: Any) -> Any:
    """Two layers in a loop."""
    return lax.scan(lambda x, _: (masked(x, k, v), None), q, None, length=2)[0]


def library(q: Any, k: Any, v: Any) -> Any:
    """What `jax.nn` calls attention."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=(9, 0))


def library_biased(q: Any, k: Any, v: Any, bias: Any) -> Any:
    """The same with grouped queries and a bias."""
    return jax.nn.dot_product_attention(q, k[:, :, :2], v[:, :, :2], bias=bias[None])


def flax_nnx(q: Any, k: Any, v: Any) -> Any:
    """Flax NNX."""
    return nnx.dot_product_attention(q, k, v, mask=nnx.make_causal_mask(jnp.ones((B, T))))


def flax_linen(x: Any) -> Any:
    """Flax Linen."""
    model = nn.MultiHeadDotProductAttention(num_heads=H, use_bias=False)
    params = model.init(jax.random.key(0), x)
    return model.apply(params, x, mask=nn.make_causal_mask(x[..., 0]))


def in_equinox(x: Any) -> Any:
    """Equinox."""
    model = equinox.nn.MultiheadAttention(H, H * D, key=jax.random.key(0))
    return jax.vmap(lambda one: model(one, one, one, mask=causal()))(x)


def forms() -> dict[str, Form]:
    """Every form with its arguments."""
    x = qkv()
    pair = qkv(kv_heads=2)
    valid = jnp.arange(B * T).reshape(B, T) % T > 9
    matrices = (normal(T, D), normal(20, D, seed=1), normal(20, 12, seed=2))
    with_arrays: list[Form] = [
        (one_head, matrices),
        (repeated, pair),
        (grouped, pair),
        (alibi, (*x, normal(H))),
        (padded, (*x, valid)),
        (boolean, (*x, normal(1, 1, T, T) + 9 * jnp.eye(T) > 0)),
        (biased, (*x, normal(H, T, T))),
        (relative, (*x, normal(T, T, D))),
        (wide_softmax, qkv(jnp.bfloat16)),
        (packed, (normal(B, T, 3 * H * D),)),
        (library_biased, (*x, normal(H, T, T))),
        (flax_linen, (normal(B, T, H * D),)),
        (in_equinox, (normal(B, T, H * D),)),
    ]
    alone = [plain, masked, filled, biased_mask, manual, divided_last, without_maximum, with_logsumexp]
    alone += [one_key_head, window_and_cap, keys_first, mapped, in_scan, library, flax_nnx]
    found = {fun.__name__: (fun, args) for fun, args in [*((f, x) for f in alone), *with_arrays]}
    for dtype in (jnp.bfloat16, jnp.float16):
        found[f"masked_{dtype.__name__}"] = (masked, qkv(dtype))
    return found
