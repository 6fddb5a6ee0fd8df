"""Models that read every size from their parameters: with smaller arrays they are smaller models."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Params = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

WIDTH = 4  # of a head


def layer_norm(x: Any, scale: Any, bias: Any) -> Any:
    """Over the last dimension."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5) * scale + bias


def conv(x: Any, kernel: Any, stride: int = 1, groups: int = 1) -> Any:
    """[N, H, W, C] with [h, w, in, out]."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def attend(x: Any, p: Params) -> Any:
    """Causal attention with fewer keys than queries, each repeated, and turned positions."""
    batch, length, _ = x.shape
    query, key, value = (
        (x @ p[name]).reshape(batch, length, p[name].shape[1] // WIDTH, WIDTH) for name in "qkv"
    )
    angle = jnp.arange(length)[:, None] * 0.5 ** jnp.arange(WIDTH // 2)
    sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]

    def turned(y: Any) -> Any:
        left, right = jnp.split(y, 2, axis=-1)
        return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], -1)

    repeats = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(y, repeats, axis=2) for y in (turned(key), value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", turned(query), key) * WIDTH**-0.5
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
    return mixed.reshape(batch, length, -1) @ p["o"]


def transformer(params: Params, tokens: Any) -> Any:
    """Tied embeddings, positions, a block with grouped queries and a gated MLP, norms."""
    x = params["embed"][tokens] + params["positions"][: tokens.shape[1]]
    block = params["block"]
    x = x + attend(layer_norm(x, block["s1"], block["b1"]), block)
    gate, up = jnp.split(layer_norm(x, block["s2"], block["b2"]) @ block["in"], 2, axis=-1)
    x = x + (jax.nn.silu(gate) * up) @ block["out"]
    return layer_norm(x, params["s"], params["b"]) @ params["embed"].T


def _block() -> Shapes:
    projections = {"q": (12, 16), "k": (12, 8), "v": (12, 8), "o": (16, 12)}
    return projections | {"in": (12, 40), "out": (20, 12)} | {k: (12,) for k in ("s1", "b1", "s2", "b2")}


TRANSFORMER = {"embed": (11, 12), "positions": (9, 12), "block": _block(), "s": (12,), "b": (12,)}


def resnet(params: Params, x: Any) -> Any:
    """Residual sums, batch norm with known statistics, pooling, a dense block, flattening before the end."""

    def normed(y: Any, p: Params) -> Any:
        return (y - p["mean"]) * lax.rsqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]

    x = jax.nn.relu(normed(conv(x, params["stem"]), params["n0"]))
    y = jax.nn.relu(normed(conv(x, params["one"]), params["n1"]))
    x = jax.nn.relu(x + normed(conv(y, params["two"]), params["n2"]))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jnp.concatenate([x, jax.nn.relu(conv(x, params["grow"]))], -1)
    x = jax.nn.relu(conv(x, params["mix"], groups=params["mix"].shape[-1]))
    x = jax.nn.relu(conv(x, params["pairs"], groups=x.shape[-1] // 2))
    return x.reshape(x.shape[0], -1) @ params["head"] + params["head_bias"]


def _norm(width: int) -> Shapes:
    return {name: (width,) for name in ("mean", "var", "scale", "bias")}


RESNET = {
    "stem": (3, 3, 3, 8),
    "one": (3, 3, 8, 6),
    "two": (3, 3, 6, 8),
    "grow": (3, 3, 8, 4),
    "mix": (3, 3, 1, 12),
    "pairs": (1, 1, 2, 12),
    "head": (3 * 3 * 12, 5),
    "head_bias": (5,),
    **{f"n{i}": _norm(width) for i, width in enumerate((8, 6, 8))},
}


def recurrent(params: Params, xs: Any, start: Any) -> Any:
    """An LSTM whose four gates are one product, over time; two results."""
    hidden = params["wh"].shape[0]

    def step(carry: Any, x: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(x @ params["wx"] + h @ params["wh"] + params["b"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    first = jnp.tanh(start @ params["start"])
    (_, last), hs = lax.scan(step, (first, jnp.zeros((xs.shape[1], hidden))), xs)
    return hs @ params["out"], last @ params["out2"]


RECURRENT = {"wx": (3, 24), "wh": (6, 24), "b": (24,), "start": (4, 6), "out": (6, 2), "out2": (6, 5)}


def stacked(params: Params, x: Any) -> Any:
    """A scan over stacked residual layers, each under remat, with a branch."""

    @jax.checkpoint
    def layer(x: Any, p: Params) -> Any:
        y = jnp.tanh(x @ p["w1"]) @ p["w2"]
        return x + lax.cond(y.sum() > 0, lambda y: y * p["scale"], lambda y: jnp.sin(y), y), None

    x, _ = lax.scan(layer, x @ params["in"], params["layers"])
    return x @ params["out"]


STACKED = {
    "in": (3, 6),
    "layers": {"w1": (4, 6, 10), "w2": (4, 10, 6), "scale": (4, 6)},
    "out": (6, 2),
}


def unet(params: Params, x: Any, z: Any) -> Any:
    """A transposed convolution, a skip, group norm, a second input; a mapping of results."""
    numbers = ("NHWC", "HWIO", "NHWC")
    down = jax.nn.relu(conv(x, params["down"], stride=2))
    up = lax.conv_transpose(down, params["up"], (2, 2), "SAME", dimension_numbers=numbers)
    skip = jnp.stack([up, conv(x, params["side"])], -1).sum(-1)
    batch, height, width, channels = skip.shape
    grouped = skip.reshape(batch, height, width, channels // 2, 2)
    grouped = grouped - grouped.mean((1, 2, 4), keepdims=True)
    skip = grouped.reshape(skip.shape) * params["scale"]
    style = jnp.tanh(z @ params["style"])
    return {
        "image": conv(skip * style[:, None, None, :], params["last"]),
        "codes": down.mean((1, 2)) @ params["codes"],
    }


UNET = {
    "down": (3, 3, 2, 6),
    "up": (3, 3, 6, 8),
    "side": (1, 1, 2, 8),
    "scale": (8,),
    "style": (3, 8),
    "last": (3, 3, 8, 2),
    "codes": (6, 4),
}
