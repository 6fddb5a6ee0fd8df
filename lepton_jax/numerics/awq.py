"""AWQ: scaling up the inputs of a weight that matter most, so that rounding hurts them less.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (2023). x @ w is
(x / s) @ (s · w); with s = (mean |x|)^α, normalised, salient inputs get finer steps. α is searched for the
least error of the output, with α = 0 (s = 1) among the candidates, so by that measure the result is never
worse than rounding. Division by s is folded into what makes x. The paper's search for clipped ranges is
`clipped_scale`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._blocks import reduce_blocks
from lepton_jax.numerics._matrix import MatrixLayout
from lepton_jax.numerics.quantize import Scheme, decode, encode, extremes, fake_quantize, scale_of_range
from lepton_jax.numerics.sensitivity import damage
from lepton_jax.numerics.smoothquant import scaled


class AWQ(NamedTuple):
    """What AWQ found.

    Attributes:
        scale: f32[C], s: the weight is to be multiplied by it and quantised, x divided by it.
        alpha: f32[], the exponent chosen.
        error: f32[], the expected error of the output, as `sensitivity.damage` measures it.
        rounding_error: f32[], that of plain rounding.
    """

    scale: jax.Array
    alpha: jax.Array
    error: jax.Array
    rounding_error: jax.Array


def awq(
    w: jax.Array,
    magnitude: jax.Array,
    scheme: Scheme,
    *,
    moment: jax.Array | None = None,
    axis: int = 0,
    layout: MatrixLayout | None = None,
    grid: int = 20,
) -> AWQ:
    """The scale of each input channel that makes quantising a weight change its output least.

    Args:
        w: floats, of any shape.
        magnitude: mean |x| of each input channel, f32[C] (`Moments(axes=(-1,))`'s `magnitude`).
        scheme: how `scale · w` will be quantised.
        moment: second moments of the input: `Hessian.matrix`, f32[K, K], or its diagonal, f32[K] (`second` of
            `Moments`), over all contracted inputs of `layout`. None: `magnitude` squared, of each channel.
        axis: the axis of w of the input channels, of length C.
        layout: the contracted axes of w if there are more than `axis`, batches, or groups.
        grid: how many exponents from 0 to 1 are tried.

    Raises:
        ValueError: if lengths do not fit, or the grid is empty.

    Example:
        >>> w, magnitude = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), jnp.array([1.0, 1.0, 1.0, 16.0])
        >>> found = awq(w, magnitude, Scheme("int4", shared=(0,)))  # x is divided by found.scale
        >>> found.scale.shape, bool(found.scale[3] > found.scale[0])
        ((4,), True)
    """
    channels = w.shape[axis]
    if magnitude.shape != (channels,):
        raise ValueError(
            f"axis {axis} of a weight {w.shape} needs ({channels},) magnitudes: {magnitude.shape}"
        )
    if grid < 1:
        raise ValueError(f"the grid needs at least one exponent, not {grid}")
    layout = MatrixLayout((axis,)) if layout is None else layout
    w = w.astype(jnp.float32)
    size = magnitude.astype(jnp.float32)
    if moment is None:
        moment = layout.to_matrix(scaled(jnp.ones_like(w), jnp.square(size), axis))[..., 0]
    known = (size > 0) & jnp.isfinite(size)
    log = jnp.log2(jnp.where(known, size, 1.0))
    # The middle of the extremes becomes one, as in the paper's code; inputs that were zero stay at one.
    most, least = jnp.max(jnp.where(known, log, -jnp.inf)), jnp.min(jnp.where(known, log, jnp.inf))
    log = jnp.clip(jnp.where(known, log - (most + least) / 2, 0.0), -60.0, 60.0)

    def error(alpha: jax.Array) -> jax.Array:
        scale = jnp.exp2(alpha * log)
        rounded = fake_quantize(scaled(w, scale, axis), scheme)
        return damage(scaled(rounded, scale, axis, inverse=True) - w, moment, layout=layout)

    alphas = jnp.arange(grid, dtype=jnp.float32) / grid
    errors = lax.map(error, alphas)
    best = jnp.argmin(errors)
    return AWQ(jnp.exp2(alphas[best] * log), alphas[best], errors[best], errors[0])


def clipped_scale(
    w: jax.Array, second: jax.Array, scheme: Scheme, *, axis: int = 0, grid: int = 20, least: float = 0.5
) -> tuple[jax.Array, jax.Array | None]:
    """Scale and zero of each channel or group whose clipped range makes the output's error least.

    The error counts each input by its second moment, and leaves out that inputs are correlated.

    Args:
        w: floats, of any shape.
        second: E[x²] of each index of `axis`, f32[C] (`second` of `Moments`).
        scheme: how w is quantised.
        axis: the axis of the input channels.
        grid: how many ranges are tried.
        least: the smallest, as a part of the whole range.

    Returns:
        Scale and zero as `scale_of` gives them, for `encode`.

    Raises:
        ValueError: if lengths do not fit, or there is nothing to try.
    """
    if second.shape != (w.shape[axis],):
        raise ValueError(f"moments {second.shape} for axis {axis} of a weight of shape {w.shape}")
    if grid < 1 or not 0 < least <= 1:
        raise ValueError(f"grid must be at least 1 and least in (0, 1], not {grid} and {least}")
    w = w.astype(jnp.float32)
    low, high = extremes(w, scheme)
    weight = jnp.sqrt(second.astype(jnp.float32))
    blocks = scheme.blocks(w.ndim)

    def error(part: jax.Array) -> jax.Array:
        scale, zero = scale_of_range(low * part, high * part, scheme)
        change = decode(encode(w, scale, zero, scheme), scale, zero, scheme) - w
        return reduce_blocks(jnp.square(scaled(change, weight, axis)), blocks, "sum", 0.0)

    parts = jnp.linspace(1.0, least, grid, dtype=jnp.float32)
    best = parts[jnp.argmin(lax.map(error, parts), axis=0)]
    return scale_of_range(low * best, high * best, scheme)
