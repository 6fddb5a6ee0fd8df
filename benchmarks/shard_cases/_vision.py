"""Programs on images of the sizes that people train; parameters are float32, the arithmetic bfloat16."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import optax
from jax import ShapeDtypeStruct as Shape

from benchmarks.shard_cases._large import TX, Made, adamw

STAGES: Final = ((3, 256), (4, 512), (6, 1024), (3, 2048))
"""Of a residual net of 50 layers: blocks, and their channels (He et al., 2015)."""


def weight(*shape: int) -> Shape:
    """A parameter."""
    return Shape(shape, jnp.float32)


def conv(x: Any, kernel: Any, stride: int = 1) -> Any:
    """A convolution of examples, rows, columns and channels."""
    names = ("NHWC", "HWIO", "NHWC")
    kernel = kernel.astype(x.dtype)
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=names)


def normed(x: Any, scale: Any) -> Any:
    """Norm over the batch."""
    wide = x.astype(jnp.float32)
    mean = wide.mean((0, 1, 2))
    square = jnp.square(wide).mean((0, 1, 2)) - jnp.square(mean)
    return ((wide - mean) * jax.lax.rsqrt(square + 1e-5) * scale).astype(x.dtype)


def residual(images: int) -> Made:
    """A step of AdamW of a residual net of 50 layers on images of 224 by 224, norms over the batch."""

    blocks, into = [], 64
    for count, out in STAGES:
        for i in range(count):
            inner = out // 4
            block = {"in": weight(1, 1, into, inner), "mid": weight(3, 3, inner, inner)}
            block["out"] = weight(1, 1, inner, out)
            if i == 0:
                block["skip"] = weight(1, 1, into, out)
            block |= {f"scale_{name}": weight(w.shape[-1]) for name, w in tuple(block.items())}
            blocks.append(block)
            into = out
    params = {"stem": weight(7, 7, 3, 64), "blocks": blocks, "head": weight(into, 1000)}

    def loss(params: Any, batch: Any) -> Any:
        pixels, labels = batch
        x = jax.nn.relu(conv(pixels.astype(jnp.bfloat16), params["stem"], 2))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        for i, p in enumerate(params["blocks"]):
            stride = 2 if "skip" in p and i else 1
            y = jax.nn.relu(normed(conv(x, p["in"]), p["scale_in"]))
            y = jax.nn.relu(normed(conv(y, p["mid"], stride), p["scale_mid"]))
            y = normed(conv(y, p["out"]), p["scale_out"])
            skip = normed(conv(x, p["skip"], stride), p["scale_skip"]) if "skip" in p else x
            x = jax.nn.relu(skip + y)
        logits = x.mean((1, 2)).astype(jnp.float32) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    batch = (Shape((images, 224, 224, 3), jnp.float32), Shape((images,), jnp.int32))
    return adamw(loss), (params, jax.eval_shape(TX.init, params), batch), (0, 1)


def vision(images: int, layers: int, width: int, patch: int) -> Made:
    """A step of AdamW of a vision transformer on images of 224 by 224 (Dosovitskiy et al., 2020)."""
    heads, tokens = width // 64, (224 // patch) ** 2
    layer = {
        **{name: weight(layers, width, heads, 64) for name in "qkv"},
        "o": weight(layers, heads, 64, width),
        "up": weight(layers, width, 4 * width),
        "down": weight(layers, 4 * width, width),
        "scale": weight(layers, 2, width),
    }
    params = {
        "patch": weight(patch, patch, 3, width),
        "place": weight(tokens, width),
        "layers": layer,
        "head": weight(width, 1000),
    }

    def norm(x: Any, scale: Any) -> Any:
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6) * scale).astype(x.dtype)

    def block(x: Any, p: Any) -> Any:
        p = {name: w if name == "scale" else w.astype(x.dtype) for name, w in p.items()}
        q, k, v = (jnp.einsum("btd,dhk->bhtk", norm(x, p["scale"][0]), p[name]) for name in "qkv")
        weights = jax.nn.softmax((q @ k.swapaxes(-1, -2)).astype(jnp.float32) / 8, -1).astype(x.dtype)
        x = x + jnp.einsum("bhtk,hkd->btd", weights @ v, p["o"])
        return x + jax.nn.gelu(norm(x, p["scale"][1]) @ p["up"]) @ p["down"], None

    def loss(params: Any, batch: Any) -> Any:
        pixels, labels = batch
        x = conv(pixels.astype(jnp.bfloat16), params["patch"], patch)
        x = x.reshape(x.shape[0], -1, width) + params["place"].astype(x.dtype)
        x, _ = jax.lax.scan(block, x, params["layers"])
        logits = x.mean(1).astype(jnp.float32) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    batch = (Shape((images, 224, 224, 3), jnp.float32), Shape((images,), jnp.int32))
    return adamw(loss), (params, jax.eval_shape(TX.init, params), batch), (0, 1)
