"""Small models of many kinds, each a function, its parameters and a sample of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = dict[str, Any]
Model = tuple[Callable[..., Any], Params, tuple[Any, ...]]

_RNG = np.random.default_rng(0)


def weight(*shape: int) -> jax.Array:
    """Normal numbers, scaled by the first size."""
    return jnp.asarray(_RNG.normal(0, shape[0] ** -0.5, shape), jnp.float32)


def norm(size: int) -> Params:
    """Statistics, scale and bias of a batch norm."""
    variance = jnp.abs(weight(size)) + 0.5
    return {"mean": weight(size), "variance": variance, "scale": 1 + weight(size), "bias": weight(size)}


def batch_norm(p: Params, x: jax.Array) -> jax.Array:
    """With running statistics."""
    scaled: jax.Array = (x - p["mean"]) * lax.rsqrt(p["variance"] + 1e-5) * p["scale"] + p["bias"]
    return scaled


def layer_norm(p: Params, x: jax.Array) -> jax.Array:
    """Over the last axis."""
    scaled: jax.Array = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    shifted: jax.Array = scaled * p["scale"] + p["bias"]
    return shifted


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
    """Two-dimensional, channels last."""
    axes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=axes, feature_group_count=groups
    )


IMAGES = weight(2, 6, 6, 3)
ROWS = weight(2, 5, 16)
TOKENS = jnp.asarray(_RNG.integers(0, 11, (2, 5)))


def mlp() -> Model:
    def fun(p: Params, x: jax.Array) -> Any:
        return jnp.tanh(jax.nn.relu(x @ p["a"] + p["bias"]) @ p["b"]) @ p["c"]

    params = {"a": weight(16, 12), "bias": weight(12), "b": weight(12, 8), "c": weight(8, 3)}
    return fun, params, (ROWS,)


def resnet() -> Model:
    """Both kinds of shortcuts: channels of zeros, and a projection."""

    def fun(p: Params, x: jax.Array) -> Any:
        x = jax.nn.relu(batch_norm(p["norm"], conv(x, p["stem"])))
        h = jax.nn.relu(conv(jax.nn.relu(conv(x, p["a"])), p["b"]) + x)
        x = jnp.pad(h[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2))) + conv(h, p["c"], 2)
        x = jax.nn.relu(batch_norm(p["last"], conv(jax.nn.relu(x), p["d"])) + conv(x, p["project"]))
        return x.mean((1, 2)) @ p["head"]

    params = {"stem": weight(3, 3, 3, 8), "a": weight(3, 3, 8, 8), "b": weight(3, 3, 8, 8)}
    params |= {"c": weight(3, 3, 8, 12), "d": weight(3, 3, 12, 16), "project": weight(1, 1, 12, 16)}
    return fun, params | {"norm": norm(8), "last": norm(16), "head": weight(16, 3)}, (IMAGES,)


def depthwise() -> Model:
    """With squeeze and excitation."""

    def fun(p: Params, x: jax.Array) -> Any:
        h = jax.nn.relu(conv(x, p["a"]))
        h = jax.nn.relu6(batch_norm(p["norm"], conv(h, p["each"], groups=8)))
        gate = jax.nn.sigmoid(jax.nn.relu(h.mean((1, 2)) @ p["s"]) @ p["e"])
        return jax.nn.silu(conv(h * gate[:, None, None], p["out"])).mean((1, 2)) @ p["head"]

    params = {"a": weight(3, 3, 3, 8), "each": weight(3, 3, 1, 8), "norm": norm(8), "s": weight(8, 4)}
    return fun, params | {"e": weight(4, 8), "out": weight(1, 1, 8, 12), "head": weight(12, 3)}, (IMAGES,)


def dense_net() -> Model:
    """Results are concatenated, and a group convolution and a shuffle of channels follow."""

    def fun(p: Params, x: jax.Array) -> Any:
        x = jax.nn.relu(conv(x, p["a"]))
        x = jnp.concatenate([x, jax.nn.relu(conv(x, p["b"]))], -1)
        x = jax.nn.relu(batch_norm(p["norm"], x))
        x = jax.nn.relu(conv(conv(x, p["c"]), p["grouped"], groups=4))
        x = x.reshape(*x.shape[:3], 4, 2).swapaxes(3, 4).reshape(x.shape)
        return x.mean((1, 2)) @ p["head"]

    params = {"a": weight(3, 3, 3, 8), "b": weight(3, 3, 8, 6), "norm": norm(14), "c": weight(1, 1, 14, 8)}
    return fun, params | {"grouped": weight(3, 3, 2, 8), "head": weight(8, 3)}, (IMAGES,)


def flattened() -> Model:
    """Upsampled by a transposed convolution, pooled, and flattened before a product."""

    def fun(p: Params, x: jax.Array) -> Any:
        h = jax.nn.relu(conv(x, p["a"], 2))
        h = jax.nn.relu(lax.conv_transpose(h, p["up"], (2, 2), "SAME"))
        h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return jax.nn.tanh(h.reshape(h.shape[0], -1) @ p["w"]) @ p["head"]

    params = {"a": weight(3, 3, 3, 8), "up": weight(2, 2, 8, 6), "w": weight(54, 10), "head": weight(10, 3)}
    return fun, params, (IMAGES,)


def gated() -> Model:
    """Gated in three ways, with tied embeddings and several inputs and outputs."""

    def fun(p: Params, tokens: jax.Array, more: jax.Array) -> Any:
        x = p["table"][tokens] + more @ p["more"]
        x = x + (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]
        left, right = jnp.split(x @ p["both"], 2, -1)
        y = jnp.tanh(left) * right
        return {"logits": x @ p["table"].T, "others": (y @ p["y"], jax.nn.glu(x @ p["glu"]) @ p["y"])}

    params = {"table": weight(11, 8), "more": weight(16, 8), "gate": weight(8, 12), "up": weight(8, 12)}
    params |= {"down": weight(12, 8), "both": weight(8, 12), "glu": weight(8, 12), "y": weight(6, 3)}
    return fun, params, (TOKENS, ROWS)


def attention() -> Model:
    """Grouped queries in a fused dimension, repeated keys, and all of q, k and v in one array."""

    def softmax_of(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / 2
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[2:], bool)), scores, -jnp.inf)
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)

    def fun(p: Params, x: jax.Array) -> Any:
        q = (x @ p["q"]).reshape(2, -1, 8, 4)
        k, v = (jnp.repeat((x @ p[name]).reshape(2, -1, 4, 4), 2, 2) for name in ("k", "v"))
        x = x + softmax_of(q, k, v).reshape(2, -1, 32) @ p["out"]
        q, k, v = jnp.moveaxis((x @ p["qkv"]).reshape(2, -1, 3, 4, 4), 2, 0)
        return x + softmax_of(q, k, v).reshape(x.shape) @ p["last"]

    params = {"q": weight(16, 32), "k": weight(16, 16), "v": weight(16, 16), "out": weight(32, 16)}
    return fun, params | {"qkv": weight(16, 48), "last": weight(16, 16)}, (ROWS,)


def recurrent() -> Model:
    """An LSTM, and layers in a scan with a branch in front of them."""

    def fun(p: Params, x: jax.Array) -> Any:
        def cell(state: Any, row: jax.Array) -> Any:
            h, c = state
            i, f, g, o = jnp.split(row @ p["wx"] + h @ p["wh"] + p["bias"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = jnp.zeros((x.shape[0], p["wh"].shape[0]))
        (last, _), every = lax.scan(cell, (start, start), x.swapaxes(0, 1))
        last = lax.cond(x[0, 0, 0] > 0, lambda h: h * 2, jnp.tanh, last)
        return every @ p["head"], last @ p["head"]

    params = {"wx": weight(16, 32), "wh": weight(8, 32), "bias": weight(32), "head": weight(8, 3)}
    return fun, params, (ROWS,)


def stacked() -> Model:
    """A scan over stacked layers with layer norms, after an embedding."""

    def fun(p: Params, tokens: jax.Array) -> Any:
        def layer(x: jax.Array, p: Params) -> Any:
            return x + jax.nn.gelu(layer_norm(p, x) @ p["up"]) @ p["down"], None

        x, _ = lax.scan(layer, p["table"][tokens], p["layers"])
        return x @ p["head"]

    layers = {
        "up": weight(4, 8, 12),
        "down": weight(4, 12, 8),
        "scale": 1 + weight(4, 8),
        "bias": weight(4, 8),
    }
    return fun, {"table": weight(11, 8), "layers": layers, "head": weight(8, 3)}, (TOKENS,)


def blocks() -> Model:
    """Residual blocks, the second of which does next to nothing."""

    def fun(p: Params, x: jax.Array) -> Any:
        x = x @ p["in"]
        for block in p["blocks"]:
            x = x + jax.nn.gelu(x @ block["up"]) @ block["down"]
        return x @ p["head"]

    made = [{"up": weight(8, 12), "down": weight(12, 8) * (1e-3 if i == 1 else 1)} for i in range(3)]
    return fun, {"in": weight(16, 8), "blocks": made, "head": weight(8, 3)}, (ROWS,)
