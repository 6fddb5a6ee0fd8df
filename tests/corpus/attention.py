"""Attention as it is written: variants of masking and sharing of heads, decoding with a cache, experts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._program import Program, affine, dense, floats, integers

BATCH, LENGTH, HEADS, WIDTH = 2, 6, 4, 4
MODEL = HEADS * WIDTH


class Cache(NamedTuple):
    """Keys and values of the tokens so far, float32 [batch, capacity, heads, width], and their number."""

    key: Any
    value: Any
    index: Any


def rotary(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary embedding of x [..., length, heads, width]."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None] * frequency
    left, right = jnp.split(x, 2, axis=-1)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def multi_head(params: Any, x: jax.Array) -> jax.Array:
    """Causal self-attention with a fused projection and a residual, after a layer norm."""
    batch, length, _ = x.shape
    normed = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * params["scale"]
    qkv = affine(params["qkv"], normed).reshape(batch, length, 3, HEADS, WIDTH)
    query, key, value = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(WIDTH)
    mask = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, np.finfo(np.float32).min), axis=-1)
    mixed = (weights @ value).transpose(0, 2, 1, 3).reshape(batch, length, MODEL)
    return x + affine(params["out"], mixed)


def grouped_query(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Four query heads on two key heads, rotary positions, by einsum."""
    positions = jnp.arange(q.shape[1])
    groups = k.shape[2]
    q = rotary(q, positions).reshape(*q.shape[:2], groups, HEADS // groups, WIDTH)
    scores = jnp.einsum("btgrd,bsgd->bgrts", q, rotary(k, positions)) * WIDTH**-0.5
    scores = jnp.where(positions[:, None] >= positions, scores, -jnp.inf)
    return jnp.einsum("bgrts,bsgd->btgrd", jax.nn.softmax(scores), v).reshape(*q.shape[:2], MODEL)


def alibi(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Distance penalties of a different slope for each head."""
    slopes = 2.0 ** (-8.0 * jnp.arange(1, HEADS + 1) / HEADS)
    distance = jnp.arange(LENGTH)[None, :] - jnp.arange(LENGTH)[:, None]
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / jnp.sqrt(WIDTH)
    scores = scores + slopes[:, None, None] * jnp.minimum(distance, 0)
    scores = jnp.where(distance > 0, -1e30, scores)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1), v)


def sliding_window_soft_cap(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Local attention in bfloat16 with capped scores and a float32 softmax."""
    row, column = jnp.meshgrid(jnp.arange(LENGTH), jnp.arange(LENGTH), indexing="ij")
    mask = (row >= column) & (row - column < 3)
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32) * WIDTH**-0.5
    scores = 5.0 * jnp.tanh(scores / 5.0) + jnp.where(mask, 0.0, -1e9)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def cross_attention(q: jax.Array, memory: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention from a short sequence to a padded one, and the entropy of its weights."""
    scores = q @ memory.mT / q.shape[-1] ** 0.5 + jnp.where(valid, 0.0, -jnp.inf)[:, None, :]
    weights = jax.nn.softmax(scores, axis=-1)
    entropy = -jnp.sum(jax.scipy.special.xlogy(weights, weights), axis=-1)
    return weights @ memory, lax.stop_gradient(entropy)


def dropout_attention(
    key: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attention with dropped weights; returns the next key too."""
    key, used = jax.random.split(key)
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(WIDTH))
    keep = jax.random.bernoulli(used, 0.8, weights.shape)
    weights = jnp.where(keep, weights / 0.8, 0)
    return jnp.einsum("bhts,bshd->bthd", weights, v), key


def library_attention(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """What `jax.nn` calls attention, with a bias and the causal mask."""
    return jax.nn.dot_product_attention(q, k, v, bias=bias, is_causal=True)


def online_softmax(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """One head in blocks of keys, keeping a running maximum and sum."""
    blocks = (k.reshape(3, 2, WIDTH), v.reshape(3, 2, WIDTH))

    def step(carry: Any, block: Any) -> tuple[Any, None]:
        top, total, mixed = carry
        scores = q @ block[0].T
        new = jnp.maximum(top, scores.max(-1))
        shrink, weights = jnp.exp(top - new), jnp.exp(scores - new[:, None])
        return (new, total * shrink + weights.sum(-1), mixed * shrink[:, None] + weights @ block[1]), None

    start = (jnp.full(LENGTH, -1e30), jnp.zeros(LENGTH), jnp.zeros((LENGTH, WIDTH)))
    (_, total, mixed), _ = lax.scan(step, start, blocks)
    return mixed / total[:, None]


def cached_decode(params: Any, cache: Cache, token: jax.Array) -> tuple[jax.Array, Cache]:
    """One step of decoding: writes one key and value, attends to what is filled, picks the next token."""
    x = params["embedding"][token]
    query, key, value = jnp.split(affine(params["qkv"], x).reshape(BATCH, 3 * HEADS, WIDTH), 3, axis=1)
    keys = lax.dynamic_update_slice(cache.key, key[:, None], (0, cache.index, 0, 0))
    values = lax.dynamic_update_slice_in_dim(cache.value, value[:, None], cache.index, axis=1)
    filled = lax.broadcasted_iota(jnp.int32, (1, 1, keys.shape[1]), 2) <= cache.index
    scores = jnp.where(filled, jnp.einsum("bhd,bshd->bhs", query, keys) * WIDTH**-0.5, -1e9)
    mixed = jnp.einsum("bhs,bshd->bhd", jax.nn.softmax(scores), values).reshape(BATCH, MODEL)
    logits = (x + mixed) @ params["embedding"].T
    return jnp.argmax(logits, -1), Cache(keys, values, cache.index + 1)


def mixture_of_experts(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Top-2 routing of tokens [tokens, model] with dense dispatch, and the balancing loss."""
    gates = jax.nn.softmax(x @ params["router"])
    weight, chosen = lax.top_k(gates, 2)
    weight = weight / weight.sum(-1, keepdims=True)
    combine = (jax.nn.one_hot(chosen, gates.shape[-1]) * weight[..., None]).sum(1)
    hidden = jax.nn.gelu(jnp.einsum("td,edh->eth", x, params["up"]))
    experts = jnp.einsum("eth,ehd->etd", hidden, params["down"])
    fraction = (combine > 0).astype(jnp.float32).mean(0)
    balance = gates.shape[-1] * jnp.sum(fraction * gates.mean(0))
    return jnp.einsum("te,etd->td", combine, experts), balance


def heads(*, kv: int = HEADS, dtype: Any = np.float32) -> tuple[Any, ...]:
    """Query, key and value [batch, length, heads, width]."""
    q = floats(BATCH, LENGTH, HEADS, WIDTH, dtype=dtype)
    return q, *(floats(BATCH, LENGTH, kv, WIDTH, seed=seed, dtype=dtype) for seed in (1, 2))


def block_params() -> dict[str, Any]:
    return {
        "qkv": dense(MODEL, 3 * MODEL),
        "out": dense(MODEL, MODEL, 3),
        "scale": np.ones(MODEL, np.float32),
    }


def decode_args() -> tuple[Any, ...]:
    params = {"embedding": floats(9, MODEL), "qkv": dense(MODEL, 3 * MODEL)}
    shape = (BATCH, 5, HEADS, WIDTH)
    cache = Cache(floats(*shape, seed=3), floats(*shape, seed=4), np.int32(2))
    return params, cache, integers(BATCH, high=9)


def expert_params() -> dict[str, Any]:
    return {"router": floats(6, 4), "up": floats(4, 6, 8, seed=1), "down": floats(4, 8, 6, seed=2, scale=0.3)}


PROGRAMS = [
    Program(
        "multi_head_attention",
        multi_head,
        lambda: (block_params(), floats(BATCH, LENGTH, MODEL)),
        (0, 1),
        vmappable=True,
        exportable=True,
    ),
    Program("grouped_query_attention", grouped_query, lambda: heads(kv=2), (0, 1, 2), exportable=True),
    Program("alibi_attention", alibi, heads, (0, 1, 2), vmappable=True),
    Program(
        "sliding_window_soft_cap",
        sliding_window_soft_cap,
        lambda: heads(dtype=jnp.bfloat16),
        (0, 1, 2),
        vmappable=True,
    ),
    Program(
        "cross_attention",
        cross_attention,
        lambda: (floats(2, 3, 4), floats(2, 5, 4, seed=1), np.arange(5) < np.array([[5], [3]])),
        (0, 1),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "dropout_attention",
        dropout_attention,
        lambda: (jax.random.key(3, impl="unsafe_rbg"), *heads()),
        (1, 2, 3),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "library_attention",
        library_attention,
        lambda: (*heads(kv=2), floats(1, HEADS, LENGTH, LENGTH, seed=5)),
        (0, 1, 2, 3),
    ),
    Program(
        "online_softmax",
        online_softmax,
        lambda: tuple(floats(LENGTH, WIDTH, seed=seed) for seed in range(3)),
        (0, 1, 2),
        vmappable=True,
    ),
    Program("cached_decode", cached_decode, decode_args, vmappable=True),
    Program(
        "mixture_of_experts",
        mixture_of_experts,
        lambda: (expert_params(), floats(5, 6)),
        (0, 1),
        vmappable=True,
        exportable=True,
    ),
]
