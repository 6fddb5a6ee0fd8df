"""Convolutions: depthwise, pointwise, long and separable kernels, and gradients of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.rewrite_cases._case import Case, normal

Args = tuple[Any, ...]
Program = Callable[..., Any]
LAST: Final = ("NHWC", "HWIO", "NHWC")
FIRST: Final = ("NCHW", "OIHW", "NCHW")


def convolution(groups: int = 1, stride: int = 1, layout: tuple[str, str, str] = LAST) -> Program:
    """A two-dimensional convolution that keeps the size, but for the stride."""

    def fun(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=groups
        )

    return fun


def slope(fun: Program) -> Program:
    """The gradients with respect to both arguments."""
    return jax.grad(lambda x, w: jnp.sum(jnp.tanh(fun(x, w))), (0, 1))


def shifts(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
    """The depthwise convolution as shifted products; channels last."""
    height, width = w.shape[:2]
    pads = lax.padtype_to_pads(x.shape[1:3], (height, width), (stride, stride), "SAME")
    x = jnp.pad(x, ((0, 0), pads[0], pads[1], (0, 0)))
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    parts = [
        x[:, i : i + rows : stride, j : j + columns : stride] * w[i, j, 0]
        for i in range(height)
        for j in range(width)
    ]
    return sum(parts[1:], parts[0])


def shifts_first(x: jax.Array, w: jax.Array) -> jax.Array:
    """The depthwise convolution as shifted products; channels first."""
    height, width = w.shape[2:]
    x = jnp.pad(x, ((0, 0), (0, 0), (height // 2,) * 2, (width // 2,) * 2))
    rows, columns = x.shape[2] - height + 1, x.shape[3] - width + 1
    parts = [
        x[:, :, i : i + rows, j : j + columns] * w[:, 0, i, j, None, None]
        for i in range(height)
        for j in range(width)
    ]
    return sum(parts[1:], parts[0])


def shifts_slope(x: jax.Array, w: jax.Array) -> Any:
    """The gradients of the depthwise convolution, both as shifted products; channels last."""
    height, width = w.shape[:2]
    high, wide = x.shape[1:3]
    dy = 1 - jnp.tanh(shifts(x, w)) ** 2
    around = jnp.pad(x, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    places = [(i, j) for i in range(height) for j in range(width)]
    dw = [jnp.sum(jnp.sum(around[:, i : i + high, j : j + wide] * dy, 2), (0, 1)) for i, j in places]
    return shifts(dy, w[::-1, ::-1]), jnp.stack(dw).reshape(w.shape)


def images(channels: int, size: int = 32, count: int = 4) -> jax.Array:
    """Images, channels last."""
    return normal(count, size, size, channels)


def depthwise(channels: int, taps: int, size: int = 32, count: int = 4) -> Args:
    """Images and a depthwise kernel."""
    return images(channels, size, count), normal(taps, taps, 1, channels, seed=1)


def depthwise_first(channels: int, taps: int) -> Args:
    """Images and a depthwise kernel, channels first."""
    return normal(4, channels, 32, 32), normal(channels, 1, taps, taps, seed=1)


def pointwise_args(inputs: int, outputs: int, size: int, count: int) -> Args:
    """Images and a kernel of one tap."""
    return images(inputs, size, count), normal(1, 1, inputs, outputs, seed=1)


def pointwise_first(x: jax.Array, w: jax.Array) -> jax.Array:
    """The convolution with one tap, channels first, example by example."""
    weights = jnp.broadcast_to(w[:, :, 0, 0], (x.shape[0], *w.shape[:2]))
    return lax.dot_general(weights, x, (((2,), (1,)), ((0,), (0,))))


def pointwise_slope(x: jax.Array, w: jax.Array) -> Any:
    """The gradients of the convolution with one tap."""
    dy = 1 - jnp.tanh(x @ w[0, 0]) ** 2
    return dy @ w[0, 0].T, jnp.einsum("nhwi,nhwo->io", x, dy)[None, None]


def convolved(x: jax.Array, k: jax.Array) -> jax.Array:
    """`jnp.convolve` in blocks of twice the kernel's length, through Fourier space."""
    block = 1 << (k.size - 1).bit_length()
    blocks = -(-(x.size + k.size - 1) // block)
    padded = jnp.pad(x, (0, blocks * block - x.size)).reshape(blocks, block)
    spectrum = jnp.fft.rfft(padded, 2 * block) * jnp.fft.rfft(k, 2 * block)
    y = jnp.fft.irfft(spectrum, 2 * block)
    joined = y[:, :block].at[1:].add(y[:-1, block:]).reshape(-1)
    return joined[: x.size + k.size - 1]


def through_fourier(x: jax.Array, w: jax.Array) -> jax.Array:
    """The depthwise convolution with a large kernel through Fourier space; channels last."""
    size, taps = x.shape[1], w.shape[0]
    length = 1 << (size + taps - 2).bit_length()
    x, w = jnp.moveaxis(x, -1, 1), jnp.moveaxis(w[:, :, 0], -1, 0)[:, ::-1, ::-1]
    spectrum = jnp.fft.rfft2(x, (length, length)) * jnp.fft.rfft2(w, (length, length))
    part = slice(taps // 2, taps // 2 + size)
    return jnp.moveaxis(jnp.fft.irfft2(spectrum, (length, length))[:, :, part, part], 1, -1)


SIDE: Final = np.exp(-(np.linspace(-2, 2, 7) ** 2)).astype(np.float32)


def blur(x: jax.Array) -> jax.Array:
    """A Gaussian blur of three channels by 7 × 7 taps."""
    kernel = jnp.asarray(np.tile(np.outer(SIDE, SIDE)[:, :, None, None], (1, 1, 1, 3)))
    result: jax.Array = convolution(3)(x, kernel)
    return result


def blur_by_sides(x: jax.Array) -> jax.Array:
    """The blur in two passes of shifted products."""
    side = jnp.asarray(np.tile(SIDE[:, None, None, None], (1, 1, 1, 3)))
    return shifts(shifts(x, side), jnp.swapaxes(side, 0, 1))


def integer(x: jax.Array, w: jax.Array) -> jax.Array:
    """A convolution of 8-bit numbers."""
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=LAST, preferred_element_type=jnp.int32
    )


def integers() -> Args:
    """Images and a kernel of 8-bit numbers."""
    return (images(32) * 30).astype(jnp.int8), (normal(3, 3, 32, 32) * 30).astype(jnp.int8)


BINOMIAL: Final = np.array([1, 4, 6, 4, 1], np.float32) / 16


def smoothed_twice(x: jax.Array) -> jax.Array:
    """Two filters of five taps, one after the other."""
    return jnp.convolve(jnp.convolve(x, BINOMIAL, "valid"), BINOMIAL, "valid")


def smoothed_once(x: jax.Array) -> jax.Array:
    """One filter of nine taps, as shifted products."""
    kernel = np.convolve(BINOMIAL, BINOMIAL)
    length = x.size - kernel.size + 1
    return sum((x[i : i + length] * k for i, k in enumerate(kernel)), jnp.zeros(length))


def narrowed(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
    """A convolution to many channels, and from these to few, with nothing between."""
    result: jax.Array = convolution()(convolution()(x, w), v)
    return result


def narrowed_at_once(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
    """The convolution with the product of the kernels."""
    result: jax.Array = convolution()(x, jnp.einsum("hwim,mo->hwio", w, v[0, 0]))
    return result


def two_kernels(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
    """The sum of two convolutions."""
    result: jax.Array = convolution()(x, w) + convolution()(x, v)
    return result


def summed_kernels(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
    """The convolution with the sum of the kernels."""
    result: jax.Array = convolution()(x, w + v)
    return result


CASES: Final = [
    Case("convolution: depthwise 3×3, 32 channels", convolution(32), shifts, partial(depthwise, 32, 3)),
    Case("convolution: depthwise 3×3, 8×56×56×64", convolution(64), shifts, partial(depthwise, 64, 3, 56, 8)),
    Case("convolution: depthwise 7×7", convolution(64), shifts, partial(depthwise, 64, 7)),
    Case(
        "convolution: depthwise 3×3, stride 2",
        convolution(32, 2),
        partial(shifts, stride=2),
        partial(depthwise, 32, 3),
    ),
    Case(
        "convolution: depthwise 3×3, channels first",
        convolution(32, layout=FIRST),
        shifts_first,
        partial(depthwise_first, 32, 3),
    ),
    Case(
        "convolution: gradient of depthwise 3×3",
        slope(convolution(32)),
        shifts_slope,
        partial(depthwise, 32, 3),
    ),
    Case(
        "convolution: 1×1, 64 → 64",
        convolution(),
        lambda x, w: x @ w[0, 0],
        partial(pointwise_args, 64, 64, 32, 4),
    ),
    Case(
        "convolution: 1×1, 512 → 512",
        convolution(),
        lambda x, w: x @ w[0, 0],
        partial(pointwise_args, 512, 512, 7, 1),
    ),
    Case(
        "convolution: 1×1, channels first",
        convolution(layout=FIRST),
        pointwise_first,
        lambda: (normal(4, 64, 32, 32), normal(64, 64, 1, 1, seed=1)),
    ),
    Case(
        "convolution: gradient of 1×1",
        slope(convolution()),
        pointwise_slope,
        partial(pointwise_args, 64, 64, 32, 4),
    ),
    Case(
        "convolution: convolve, 256 taps",
        jnp.convolve,
        convolved,
        lambda: (normal(4096), normal(256, seed=1)),
    ),
    Case(
        "convolution: convolve, 512 taps, long",
        jnp.convolve,
        convolved,
        lambda: (normal(65536), normal(512, seed=1)),
    ),
    Case(
        "convolution: depthwise 15×15",
        convolution(16),
        through_fourier,
        partial(depthwise, 16, 15, 64),
    ),
    Case("convolution: Gaussian blur 7×7", blur, blur_by_sides, lambda: (images(3, 256, 1),)),
    Case(
        "convolution: 3×3, 32 → 32 (left alone)",
        convolution(),
        convolution(),
        lambda: (images(32), normal(3, 3, 32, 32, seed=1)),
    ),
    Case(
        "convolution: 64 taps, 64 → 64 (left alone)",
        lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME"),
        lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME"),
        lambda: (normal(1, 64, 1024), normal(64, 64, 64, seed=1)),
    ),
    Case(
        "convolution: two filters of 5 taps",
        smoothed_twice,
        smoothed_once,
        lambda: (normal(65536),),
    ),
    Case(
        "convolution: 3×3 to 64 channels, then 1×1 to 8",
        narrowed,
        narrowed_at_once,
        lambda: (images(16), normal(3, 3, 16, 64, seed=1), normal(1, 1, 64, 8, seed=2)),
    ),
    Case(
        "convolution: sum of two 3×3",
        two_kernels,
        summed_kernels,
        lambda: (images(16), normal(3, 3, 16, 32, seed=1), normal(3, 3, 16, 32, seed=2)),
    ),
    Case("convolution: 8-bit 3×3 (left alone)", integer, integer, integers),
]
