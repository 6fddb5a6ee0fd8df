"""Small models of many structures: a loss, its parameters, and a batch of 8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = dict[str, Any]


class Model(NamedTuple):
    """A model to be spread: `loss(params, *batch)` is a scalar."""

    loss: Callable[..., jax.Array]
    params: Params
    batch: tuple[jax.Array, ...]


BATCH, LENGTH, WIDTH, HEADS, VOCABULARY = 8, 8, 32, 8, 64
_RNG = np.random.default_rng(0)


def weight(*shape: int) -> jax.Array:
    """Normal numbers, scaled by the first size."""
    return jnp.asarray(_RNG.normal(0, shape[0] ** -0.5, shape), jnp.float32)


def tokens(*shape: int, most: int = VOCABULARY) -> jax.Array:
    """Whole numbers below `most`."""
    return jnp.asarray(_RNG.integers(0, most, shape), jnp.int32)


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Root mean square norm over the last dimension."""
    scaled: jax.Array = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale
    return scaled


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over all positions."""
    chosen = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - chosen).mean()


def mlp(layers: int = 2) -> Model:
    """Dense layers with biases, the first and the last of other sizes."""
    sizes = [16, *[WIDTH] * (layers - 1), 8]

    def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        for i in range(layers):
            x = x @ params[f"w{i}"] + params[f"b{i}"]
            x = jax.nn.relu(x) if i < layers - 1 else x
        return ((x - y) ** 2).mean()

    params = {f"w{i}": weight(sizes[i], sizes[i + 1]) for i in range(layers)}
    params |= {f"b{i}": weight(sizes[i + 1]) for i in range(layers)}
    return Model(loss, params, (weight(BATCH, 16), weight(BATCH, 8)))


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention of `[batch, length, heads, size]`."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    causal = jnp.tril(jnp.ones(scores.shape[2:], bool))
    mixed: jax.Array = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(causal, scores, -1e9)), v)
    return mixed


def attention(params: Params, x: jax.Array, heads: int = HEADS, kv_heads: int = HEADS) -> jax.Array:
    """Heads by reshape; those of keys are repeated where they are fewer."""
    split = (*x.shape[:2], -1)
    q = (x @ params["q"]).reshape(*split[:2], heads, -1)
    k, v = ((x @ params[name]).reshape(*split[:2], kv_heads, -1) for name in ("k", "v"))
    if kv_heads < heads:
        k, v = (jnp.repeat(each, heads // kv_heads, 2) for each in (k, v))
    mixed: jax.Array = attend(q, k, v).reshape(split) @ params["o"]
    return mixed


def einsum_attention(params: Params, x: jax.Array) -> jax.Array:
    """Heads as a dimension of the weights; q, k and v in one array."""
    q, k, v = jnp.einsum("btd,sdhk->sbthk", x, params["qkv"])
    mixed: jax.Array = jnp.einsum("bthk,hkd->btd", attend(q, k, v), params["out"])
    return mixed


def feed_forward(params: Params, x: jax.Array) -> jax.Array:
    """Plain, or gated where there is a gate."""
    hidden = x @ params["up"]
    hidden = jax.nn.silu(x @ params["gate"]) * hidden if "gate" in params else jax.nn.gelu(hidden)
    shrunk: jax.Array = hidden @ params["down"]
    return shrunk


def layer_params(kind: str = "dense", kv_heads: int = HEADS) -> Params:
    """Of one block."""
    size = WIDTH // HEADS * kv_heads
    params = {"up": weight(WIDTH, 4 * WIDTH), "down": weight(4 * WIDTH, WIDTH)}
    params |= {"norm": 1 + weight(WIDTH), "norm2": 1 + weight(WIDTH)}
    if kind == "gated":
        params["gate"] = weight(WIDTH, 4 * WIDTH)
    if kind == "einsum":
        heads = (HEADS, WIDTH // HEADS)
        return params | {"qkv": weight(3, WIDTH, *heads), "out": weight(*heads, WIDTH)}
    params |= {"q": weight(WIDTH, WIDTH), "o": weight(WIDTH, WIDTH)}
    return params | {"k": weight(WIDTH, size), "v": weight(WIDTH, size)}


def block(params: Params, x: jax.Array, kv_heads: int = HEADS) -> jax.Array:
    """Pre-norm, attention, then MLP."""
    h = norm(x, params["norm"])
    x = x + (einsum_attention(params, h) if "qkv" in params else attention(params, h, HEADS, kv_heads))
    return x + feed_forward(params, norm(x, params["norm2"]))


def transformer(kind: str = "dense", layers: int = 2, kv_heads: int = HEADS, scan: bool = False) -> Model:
    """A decoder: `dense`, `gated` or `einsum` heads; grouped queries; layers unrolled or scanned."""

    def loss(params: Params, ids: jax.Array, labels: jax.Array) -> jax.Array:
        x = params["embed"][ids] + params["positions"]
        if scan:
            x, _ = lax.scan(lambda x, p: (block(p, x, kv_heads), None), x, params["layers"])
        else:
            for p in params["layers"]:
                x = block(p, x, kv_heads)
        return cross_entropy(norm(x, params["norm"]) @ params["head"], labels)

    made: Any = [layer_params(kind, kv_heads) for _ in range(layers)]
    if scan:
        made = jax.tree.map(lambda *each: jnp.stack(each), *made)
    params = {"embed": weight(VOCABULARY, WIDTH), "positions": weight(LENGTH, WIDTH), "layers": made}
    params |= {"norm": 1 + weight(WIDTH), "head": weight(WIDTH, VOCABULARY)}
    return Model(loss, params, (tokens(BATCH, LENGTH), tokens(BATCH, LENGTH)))


def blocks(layers: int = 2) -> Model:
    """Blocks of a transformer alone."""

    def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        for p in params["layers"]:
            x = block(p, x)
        return ((x - y) ** 2).mean()

    made = [layer_params("gated") for _ in range(layers)]
    return Model(loss, {"layers": made}, (weight(BATCH, LENGTH, WIDTH), weight(BATCH, LENGTH, WIDTH)))


def residual() -> Model:
    """A norm and an MLP beside a residual stream."""

    def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        return ((x + feed_forward(params, norm(x, params["norm"])) - y) ** 2).mean()

    params = {"up": weight(WIDTH, 64), "down": weight(64, WIDTH), "norm": 1 + weight(WIDTH)}
    return Model(loss, params, (weight(BATCH, LENGTH, WIDTH), weight(BATCH, LENGTH, WIDTH)))


def moe(experts: int = 8) -> Model:
    """Mixture of experts: each group of tokens is sent to its experts by products (GShard)."""
    room = 4

    def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        gates = jax.nn.softmax(jnp.einsum("gtd,de->gte", x, params["router"]))
        chosen = jax.nn.one_hot(gates.argmax(-1), experts)
        place = (jnp.cumsum(chosen, 1) * chosen - 1).astype(jnp.int32)
        dispatch = jax.nn.one_hot(place, room) * chosen[..., None]
        sent = jnp.einsum("gtec,gtd->egcd", dispatch, x)
        hidden = jax.nn.relu(jnp.einsum("egcd,edf->egcf", sent, params["up"]))
        back = jnp.einsum("egcf,efd->egcd", hidden, params["down"])
        return ((jnp.einsum("gtec,egcd->gtd", dispatch * gates[..., None], back) + x - y) ** 2).mean()

    params = {"router": weight(WIDTH, experts), "up": weight(experts, WIDTH, 4 * WIDTH)}
    params["down"] = weight(experts, 4 * WIDTH, WIDTH)
    return Model(loss, params, (weight(BATCH, LENGTH, WIDTH), weight(BATCH, LENGTH, WIDTH)))


def ragged_moe(experts: int = 8) -> Model:
    """Mixture of experts: tokens sorted by expert, products of rows in groups."""

    def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        rows = x.reshape(-1, WIDTH)
        expert = (rows @ params["router"]).argmax(-1)
        order = jnp.argsort(expert)
        counts = jnp.bincount(expert, length=experts)
        hidden = jax.nn.relu(lax.ragged_dot(rows[order], params["up"], counts))
        out = lax.ragged_dot(hidden, params["down"], counts)
        return ((jnp.zeros_like(rows).at[order].set(out).reshape(x.shape) - y) ** 2).mean()

    return moe(experts)._replace(loss=loss)


def gathered_moe(experts: int = 8) -> Model:
    """Mixture of experts: each example looks its expert's weights up."""

    def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        expert = (x.mean(1) @ params["router"]).argmax(-1)
        hidden = jax.nn.relu(jnp.einsum("gtd,gdf->gtf", x, params["up"][expert]))
        return ((jnp.einsum("gtf,gfd->gtd", hidden, params["down"][expert]) - y) ** 2).mean()

    return moe(experts)._replace(loss=loss)


def convnet() -> Model:
    """A stem, two residual blocks with norms, and a head."""

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def loss(params: Params, x: jax.Array, labels: jax.Array) -> jax.Array:
        x = jax.nn.relu(conv(x, params["stem"]))
        for p in params["blocks"]:
            h = conv(x, p["a"])
            h = (h - h.mean((0, 1, 2))) * lax.rsqrt(h.var((0, 1, 2)) + 1e-5) * p["scale"] + p["bias"]
            x = jax.nn.relu(x + conv(jax.nn.relu(h), p["b"]))
        return cross_entropy(x.mean((1, 2)) @ params["head"], labels)

    blocks = [
        {"a": weight(3, 3, 16, 32), "b": weight(3, 3, 32, 16), "scale": weight(32), "bias": weight(32)}
        for _ in range(2)
    ]
    params = {"stem": weight(3, 3, 3, 16), "blocks": blocks, "head": weight(16, 8)}
    return Model(loss, params, (weight(BATCH, 8, 8, 3), tokens(BATCH, most=8)))


def recommender() -> Model:
    """Tables of embeddings beside dense features, their products, and an MLP on top."""
    sizes = (256, 512, 128)

    def loss(params: Params, dense: jax.Array, ids: jax.Array, clicked: jax.Array) -> jax.Array:
        rows = [table[ids[:, i]] for i, table in enumerate(params["tables"])]
        rows.append(jax.nn.relu(dense @ params["bottom"]))
        features = jnp.stack(rows, 1)
        pairs = jnp.einsum("bnd,bmd->bnm", features, features).reshape(BATCH, -1)
        hidden = jax.nn.relu(jnp.concatenate([pairs, rows[-1]], 1) @ params["top"])
        return jax.nn.softplus(-(hidden @ params["last"])[:, 0] * clicked).mean()

    params = {"tables": [weight(size, 16) for size in sizes], "bottom": weight(13, 16)}
    params |= {"top": weight(32, 64), "last": weight(64, 1)}
    ids = jnp.stack([tokens(BATCH, most=size) for size in sizes], 1)
    return Model(loss, params, (weight(BATCH, 13), ids, weight(BATCH)))
