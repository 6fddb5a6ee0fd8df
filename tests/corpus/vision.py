"""Images: convolutional networks, augmentation, morphology and warps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._program import Program, affine, dense, floats, integers

SIZE, CHANNELS = 6, 3


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, **options: Any) -> jax.Array:
    """A convolution with padding of x [batch, height, width, channels]."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, **options)


def conv_net(params: Any, state: Any, images: jax.Array) -> tuple[jax.Array, Any]:
    """Convolution, batch norm with running statistics, pooling, head: logits and the new statistics."""
    x = convolve(images, params["first"])
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    new = {"mean": 0.9 * state["mean"] + 0.1 * mean, "var": 0.9 * state["var"] + 0.1 * variance}
    x = (x - mean) * lax.rsqrt(variance + 1e-5) * params["scale"] + params["shift"]
    x = lax.reduce_window(jax.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(convolve(x, params["second"], 2))
    return affine(params["head"], x.reshape(x.shape[0], -1)), jax.tree.map(lax.stop_gradient, new)


def separable_residual(params: Any, x: jax.Array) -> jax.Array:
    """A depthwise and a pointwise convolution with group norm and a squeeze-and-excite gate."""
    y = convolve(x, params["depth"], feature_group_count=4)
    grouped = y.reshape(*y.shape[:-1], 2, 2)
    centred = grouped - grouped.mean((1, 2, 4), keepdims=True)
    y = (centred / jnp.sqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-5)).reshape(y.shape)
    y = jnp.einsum("bhwc,cd->bhwd", jax.nn.silu(y), params["point"])
    gate = jax.nn.sigmoid(y.mean((1, 2)) @ params["gate"])
    return x + y * gate[:, None, None, :]


def decoder(params: Any, latent: jax.Array) -> jax.Array:
    """A transposed and a dilated convolution after nearest-neighbour upsampling."""
    x = jnp.repeat(jnp.repeat(latent, 2, axis=1), 2, axis=2)
    x = lax.conv_transpose(x, params["up"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(convolve(jax.nn.leaky_relu(x), params["out"], rhs_dilation=(2, 2)))


def pools(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Average and max pooling with overlaps and padding, a dilated minimum, global pooling."""
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, "SAME")
    count = lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, window, strides, "SAME")
    padding = ((0, 0), (1, 1), (1, 0), (0, 0))
    top = lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
    spread, still = (1, 2, 2, 1), lax.stop_gradient(x)
    low = lax.reduce_window(still, jnp.inf, lax.min, spread, (1, 1, 1, 1), "VALID", window_dilation=spread)
    return total / count, top, low, x.mean((1, 2))


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Random flips, shifts, cut-outs and mixing of uint8 images: float32 around zero."""

    def one(draw: jax.Array, image: jax.Array) -> jax.Array:
        image = jnp.where(draw[0] < 0.5, image[:, ::-1], image)
        padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        top, left = (3 * draw[1:3]).astype(jnp.int32)
        image = lax.dynamic_slice(padded, (top, left, 0), image.shape)
        row, column = jnp.floor((SIZE - 1) * draw[3:]).astype(jnp.int32)
        return lax.dynamic_update_slice(image, jnp.zeros((2, 2, CHANNELS), image.dtype), (row, column, 0))

    draws = jax.random.uniform(key, (len(images), 5))
    batch = jax.vmap(one)(draws, images).astype(jnp.float32) / 127.5 - 1.0
    return 0.7 * batch + 0.3 * jnp.flip(batch, 0)


def bytes_pipeline(image: jax.Array) -> dict[str, jax.Array]:
    """Arithmetic of uint8 images that wraps, saturates, thresholds and counts."""
    wide = image.astype(jnp.int32)
    grey = ((wide * jnp.array([77, 150, 29])).sum(-1) >> 8).astype(jnp.uint8)
    return {
        "brighter": jnp.clip(wide + 40, 0, 255).astype(jnp.uint8),
        "wrapped": image + jnp.uint8(200),
        "inverted": 255 - image,
        "grey": grey,
        "mask": (grey > 127) & (grey.astype(jnp.int32) % 2 == 0),
        "histogram": jnp.bincount(grey.reshape(-1) // 64, length=4),
        "dithered": jnp.round(image / 255 * 3).astype(jnp.uint8),
    }


def life(board: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Conway's game on a torus of booleans: the board after five steps and the population at each."""

    def step(alive: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        count = sum(
            jnp.roll(alive, (dy, dx), (0, 1)).astype(jnp.int8)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if (dy, dx) != (0, 0)
        )
        alive = (count == 3) | (alive & (count == 2))
        return alive, jnp.count_nonzero(alive)

    return lax.scan(step, board, None, length=5)


def warp(image: jax.Array, flow: jax.Array) -> Any:
    """Bilinear sampling of an image [height, width, channels] at the grid moved by a flow."""
    grid = jnp.stack(jnp.mgrid[:SIZE, :SIZE], axis=-1) + flow
    corner = jnp.floor(grid).astype(jnp.int32)
    share = grid - corner
    result = jnp.zeros_like(image)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = jnp.abs(1 - dy - share[..., 0]) * jnp.abs(1 - dx - share[..., 1])
            place = jnp.clip(corner + jnp.array([dy, dx]), 0, SIZE - 1)
            result += weight[..., None] * image[place[..., 0], place[..., 1]]
    return result


def patches(params: Any, images: jax.Array) -> Any:
    """Embedding of the patches of a vision transformer with a class token, and a resized copy's mean."""
    cut = images.reshape(-1, 3, SIZE // 3, 3, SIZE // 3, CHANNELS).transpose(0, 1, 3, 2, 4, 5)
    tokens = affine(params["embed"], cut.reshape(len(images), 9, -1))
    token = jnp.broadcast_to(params["class"], (len(images), 1, tokens.shape[-1]))
    small = jax.image.resize(images, (len(images), 3, 3, CHANNELS), "bilinear")
    return jnp.concatenate([token, tokens], axis=1) + small.mean()


def images(count: int = 2, seed: int = 0) -> np.ndarray:
    return floats(count, SIZE, SIZE, CHANNELS, seed=seed)


def pixels(*batch: int) -> np.ndarray:
    return integers(*batch, SIZE, SIZE, CHANNELS, high=256, dtype=np.uint8)


def network_args() -> tuple[Any, ...]:
    params = {
        "first": floats(3, 3, CHANNELS, 4, scale=0.2),
        "scale": floats(4, seed=1),
        "shift": floats(4, seed=2),
        "second": floats(3, 3, 4, 5, seed=3, scale=0.2),
        "head": dense(20, 4),
    }
    return params, {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}, images()


def residual_args() -> tuple[Any, ...]:
    params = {
        "depth": floats(3, 3, 1, 4, scale=0.3),
        "point": floats(4, 4, seed=1),
        "gate": floats(4, 4, seed=2),
    }
    return params, floats(2, 5, 5, 4, seed=3)


def decoder_args() -> tuple[Any, ...]:
    return {"up": floats(4, 4, 3, 4, scale=0.2), "out": floats(3, 3, 4, 2, scale=0.2)}, floats(
        1, 2, 2, 3, seed=1
    )


def patch_args() -> tuple[Any, ...]:
    return {"embed": dense(12, 4), "class": floats(4)}, images()


PROGRAMS = [
    Program("convolutional_network", conv_net, network_args, (0, 2), exportable=True),
    Program("separable_residual", separable_residual, residual_args, (0, 1), exportable=True),
    Program("convolution_decoder", decoder, decoder_args, (0, 1), vmappable=True),
    Program("pooling", pools, lambda: (images(),), (0,), vmappable=True),
    Program("augment_images", augment, lambda: (jax.random.key(2, impl="unsafe_rbg"), pixels(3))),
    Program("uint8_images", bytes_pipeline, lambda: (pixels(),), vmappable=True, exportable=True),
    Program("game_of_life", life, lambda: (floats(6, 7) > 0,), vmappable=True, exportable=True),
    Program("bilinear_warp", warp, lambda: (images()[0], floats(SIZE, SIZE, 2)), (0, 1), vmappable=True),
    Program("patch_embedding", patches, patch_args, (0, 1), vmappable=True, exportable=True),
]
