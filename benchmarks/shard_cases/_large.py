"""Programs of the sizes that people train and serve: arrays of one device are megabytes to gigabytes.

Parameters are float32 and computed with in bfloat16, as Flax and others do it; the optimiser is AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import optax
from jax import ShapeDtypeStruct as Shape

TX: Final = optax.adamw(3e-4, weight_decay=0.1)


@dataclass(frozen=True)
class Sizes:
    """Of a transformer.

    Attributes:
        layers: how many, scanned.
        width: of the residual stream.
        hidden: of the feed-forward network.
        heads: of queries.
        kv_heads: of keys and values.
        vocabulary: words; 0: none, what goes in is embedded already.
        experts: feed-forward networks of which each token takes two; 0: one for all.
    """

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000
    experts: int = 0

    @property
    def head(self) -> int:
        """The width of a head."""
        return self.width // self.heads


def params_of(sizes: Sizes, scanned: bool = True) -> Any:
    """The shapes of the parameters; those of layers are stacked, or a list."""
    wide, inner = sizes.width, sizes.hidden
    experts = (sizes.experts,) if sizes.experts else ()
    layer = {
        "norm1": (wide,),
        "norm2": (wide,),
        "q": (wide, sizes.heads, sizes.head),
        "k": (wide, sizes.kv_heads, sizes.head),
        "v": (wide, sizes.kv_heads, sizes.head),
        "o": (sizes.heads, sizes.head, wide),
        "gate": (*experts, wide, inner),
        "up": (*experts, wide, inner),
        "down": (*experts, inner, wide),
    }
    if sizes.experts:
        layer["router"] = (wide, sizes.experts)
    each: Any = {name: Shape(shape, jnp.float32) for name, shape in layer.items()}
    stacked = {name: Shape((sizes.layers, *x.shape), x.dtype) for name, x in each.items()}
    layers: Any = stacked if scanned else [each] * sizes.layers
    embed = Shape((sizes.vocabulary, wide), jnp.float32)
    return {
        "embed": embed,
        "layers": layers,
        "norm": Shape((wide,), jnp.float32),
        "head": Shape(embed.shape[::-1], jnp.float32),
    }


def norm(x: Any, scale: Any) -> Any:
    """Root mean square norm."""
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    return (x * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype) * scale.astype(x.dtype)


def rotated(x: Any, start: Any = 0) -> Any:
    """Rotary position embedding of [batch, length, heads, head] (Su et al., 2021)."""
    half = x.shape[-1] // 2
    speeds = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (start + jnp.arange(x.shape[1], dtype=jnp.float32))[:, None, None] * speeds
    sin, cos = jnp.sin(angles).astype(x.dtype), jnp.cos(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def weights(p: Any) -> Any:
    """Parameters in the type of the arithmetic."""
    return jax.tree.map(lambda w: w.astype(jnp.bfloat16), p)


def attend(p: Any, x: Any, causal: bool) -> Any:
    """Attention of tokens [batch, length, width] with grouped queries."""
    q = rotated(jnp.einsum("btd,dhk->bthk", x, p["q"]))
    k = rotated(jnp.einsum("btd,dhk->bthk", x, p["k"]))
    v = jnp.einsum("btd,dhk->bthk", x, p["v"])
    q = q.reshape(*k.shape[:3], -1, k.shape[3])
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k).astype(jnp.float32) / k.shape[3] ** 0.5
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e9)
    mixed = jnp.einsum("bkgts,bskh->btkgh", jax.nn.softmax(scores, -1).astype(x.dtype), v)
    return jnp.einsum("bthk,hkd->btd", mixed.reshape(*x.shape[:2], -1, k.shape[3]), p["o"])


def gated(p: Any, x: Any) -> Any:
    """A feed-forward network with a gate (Shazeer, 2020)."""
    return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def routed(p: Any, x: Any) -> Any:
    """Two experts for each token, in the form of GShard (Lepikhin et al., 2020): masks and einsums."""
    count = p["gate"].shape[0]
    room = 5 * x.shape[1] // (2 * count)
    gates = jax.nn.softmax((x @ p["router"]).astype(jnp.float32), -1)
    best, which = jax.lax.top_k(gates, 2)
    chosen = jax.nn.one_hot(which, count, dtype=jnp.float32).sum(2)
    place = (jnp.cumsum(chosen, 1) - 1) * chosen
    masks = jax.nn.one_hot(place.astype(jnp.int32), room, dtype=x.dtype) * chosen[..., None].astype(x.dtype)
    given = jnp.einsum("btec,btd->ebcd", masks, x)
    hidden = jax.nn.silu(jnp.einsum("ebcd,edf->ebcf", given, p["gate"]))
    hidden = hidden * jnp.einsum("ebcd,edf->ebcf", given, p["up"])
    done = jnp.einsum("ebcf,efd->ebcd", hidden, p["down"])
    share = (gates * chosen / best.sum(-1, keepdims=True)).astype(x.dtype)
    return jnp.einsum("btec,ebcd->btd", masks * share[..., None], done)


def hidden_states(params: Any, tokens: Any, causal: bool, again: bool) -> Any:
    """What the last layer makes of tokens [batch, length]."""

    def layer(x: Any, p: Any) -> Any:
        p = weights(p)
        x = x + attend(p, norm(x, p["norm1"]), causal)
        within = routed if "router" in p else gated
        return x + within(p, norm(x, p["norm2"])), None

    layers, step = params["layers"], jax.checkpoint(layer) if again else layer
    x = params["embed"].astype(jnp.bfloat16)[tokens]
    if isinstance(layers, dict):
        x, _ = jax.lax.scan(step, x, layers)
    else:
        for p in layers:
            x, _ = step(x, p)
    return norm(x, params["norm"])


Made = tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]
"""A function, the shapes of its arguments, and which of them are donated."""


def training(
    sizes: Sizes,
    batch: int,
    length: int,
    scanned: bool = True,
    causal: bool = True,
    again: bool = True,
    microbatches: int = 1,
) -> Made:
    """A step of AdamW on tokens; layers scanned or not, attention causal or not, computed again or not."""

    def loss(params: Any, tokens: Any) -> Any:
        x = hidden_states(params, tokens[:, :-1], causal, again)
        logits = (x @ params["head"].astype(x.dtype)).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    params = params_of(sizes, scanned)
    tokens = Shape((batch, length + 1), jnp.int32)
    return adamw(loss, microbatches), (params, jax.eval_shape(TX.init, params), tokens), (0, 1)


def adamw(loss: Callable[[Any, Any], Any], microbatches: int = 1) -> Callable[..., Any]:
    """A step: (params, state, batch) → (params, state, loss); gradients are added up over micro-batches."""

    def gradients(params: Any, batch: Any) -> Any:
        if microbatches == 1:
            return jax.value_and_grad(loss)(params, batch)

        def add(sums: Any, part: Any) -> Any:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(params, part)), None

        # Each device keeps its examples: the parts are made of every n-th.
        parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        sums, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x: x / microbatches, sums)

    def step(params: Any, state: Any, batch: Any) -> Any:
        value, grads = gradients(params, batch)
        updates, state = TX.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def prefill(sizes: Sizes, batch: int, length: int) -> Made:
    """The logits of the next word after a prompt; parameters are bfloat16."""

    def forward(params: Any, tokens: Any) -> Any:
        x = hidden_states(params, tokens, True, False)
        return (x[:, -1] @ params["head"]).astype(jnp.float32)

    return forward, (weight_shapes(sizes), Shape((batch, length), jnp.int32)), ()


def weight_shapes(sizes: Sizes) -> Any:
    """Parameters as they are served."""
    return jax.tree.map(lambda x: Shape(x.shape, jnp.bfloat16), params_of(sizes))


def decoding(sizes: Sizes, batch: int, length: int) -> Made:
    """One more word for each sequence, keys and values kept in a cache, which is donated."""

    def step(params: Any, cache: Any, tokens: Any, at: Any) -> Any:
        def layer(x: Any, each: Any) -> Any:
            p, kept = each
            y = norm(x, p["norm1"])
            q = rotated(jnp.einsum("btd,dhk->bthk", y, p["q"]), at)
            k = rotated(jnp.einsum("btd,dhk->bthk", y, p["k"]), at)
            v = jnp.einsum("btd,dhk->bthk", y, p["v"])
            keys = jax.lax.dynamic_update_slice(kept["k"], k, (0, at, 0, 0))
            values = jax.lax.dynamic_update_slice(kept["v"], v, (0, at, 0, 0))
            q = q.reshape(*k.shape[:3], -1, k.shape[3])
            scores = jnp.einsum("btkgh,bskh->bkgts", q, keys).astype(jnp.float32) / k.shape[3] ** 0.5
            scores = jnp.where(jnp.arange(length) <= at, scores, -1e9)
            mixed = jnp.einsum("bkgts,bskh->btkgh", jax.nn.softmax(scores, -1).astype(x.dtype), values)
            mixed = mixed.reshape(*x.shape[:2], -1, k.shape[3])
            x = x + jnp.einsum("bthk,hkd->btd", mixed, p["o"])
            return x + gated(p, norm(x, p["norm2"])), {"k": keys, "v": values}

        x, cache = jax.lax.scan(layer, params["embed"][tokens], (params["layers"], cache))
        logits = (norm(x, params["norm"])[:, 0] @ params["head"]).astype(jnp.float32)
        return jnp.argmax(logits, -1)[:, None], cache

    shape = (sizes.layers, batch, length, sizes.kv_heads, sizes.head)
    cache = {name: Shape(shape, jnp.bfloat16) for name in "kv"}
    tokens = Shape((batch, 1), jnp.int32)
    return step, (weight_shapes(sizes), cache, tokens, Shape((), jnp.int32)), (1,)


def recurrent(batch: int, length: int, layers: int, width: int, vocabulary: int) -> Made:
    """A step of AdamW of a language model of LSTM cells (Hochreiter and Schmidhuber, 1997)."""
    cell = {"in": Shape((width, 4 * width), jnp.float32), "state": Shape((width, 4 * width), jnp.float32)}
    params = {
        "embed": Shape((vocabulary, width), jnp.float32),
        "cells": [cell] * layers,
        "head": Shape((width, vocabulary), jnp.float32),
    }

    def run(p: Any, x: Any) -> Any:
        p = weights(p)

        def step(carry: Any, given: Any) -> Any:
            state, kept = carry
            i, f, g, o = jnp.split((given + state @ p["state"]).astype(jnp.float32), 4, -1)
            kept = jax.nn.sigmoid(f) * kept + jax.nn.sigmoid(i) * jnp.tanh(g)
            state = (jax.nn.sigmoid(o) * jnp.tanh(kept)).astype(x.dtype)
            return (state, kept), state

        start = jnp.zeros((x.shape[1], width), x.dtype), jnp.zeros((x.shape[1], width), jnp.float32)
        return jax.lax.scan(step, start, x @ p["in"])[1]

    def loss(params: Any, tokens: Any) -> Any:
        x = params["embed"].astype(jnp.bfloat16)[tokens[:, :-1].T]
        for p in params["cells"]:
            x = x + run(p, x)
        logits = (x @ params["head"].astype(x.dtype)).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:].T).mean()

    tokens = Shape((batch, length + 1), jnp.int32)
    return adamw(loss), (params, jax.eval_shape(TX.init, params), tokens), (0, 1)
