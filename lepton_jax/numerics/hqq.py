"""HQQ: scale and zero point that suit most of a weight, found without data.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023). The error |w − ŵ|^p
with p < 1 forgives outliers that no step size serves; half-quadratic splitting alternates between a sparse
error e, which a shrinkage gives in closed form, and the zero (or scale) that fits the codes to w − e.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._blocks import reduce_blocks
from lepton_jax.numerics.quantize import Quantized, Scheme, decode, encode, expand, scale_of


def hqq(
    w: jax.Array,
    scheme: Scheme,
    *,
    float_zero: bool = False,
    p: float = 0.7,
    beta: float = 10.0,
    growth: float = 1.01,
    steps: int = 20,
) -> Quantized:
    """Codes of a weight, with scales (or zeros) that make Σ|w − ŵ|^p small.

    Each channel or group keeps the best it came by, so by this measure none is worse than rounding to
    nearest. Errors are measured in steps of the format, so the settings do not depend on how large the weight
    is.

    Args:
        w: floats, of any shape.
        scheme: how to quantise; any format.
        float_zero: for affine schemes: keep the scales and optimise zeros in floating point, as the paper
            does; `Quantized.zero` is float32 then, which `decode` knows. Otherwise the scales are optimised,
            for every format.
        p: the exponent of the error, more than 0, less than 1.
        beta: how closely e follows the error at first.
        growth: by how much beta grows with each step.
        steps: how many.

    Raises:
        ValueError: if a setting is out of range, or the zeros of a symmetric scheme are to be optimised.

    Example:
        >>> scheme = Scheme("int4", symmetric=False, shared=(0,), group=4)
        >>> codes, scale, zero = hqq(jnp.linspace(0.0, 1.0, 24).reshape(8, 3), scheme, float_zero=True)
        >>> codes.shape, scale.shape, zero.dtype.name
        ((8, 3), (2, 3), 'float32')
    """
    if not 0 < p < 1 or beta <= 0 or growth < 1 or steps < 0:
        given = f"{p}, {beta}, {growth}, {steps}"
        raise ValueError(f"needed are 0 < p < 1, beta > 0, growth ≥ 1 and steps ≥ 0, not {given}")
    if float_zero and scheme.symmetric:
        raise ValueError("a symmetric scheme has no zero to optimise: use symmetric=False")
    w = w.astype(jnp.float32)
    blocks = scheme.blocks(w.ndim)
    scale, zero = scale_of(w, scheme)
    if float_zero and zero is not None:
        zero = zero.astype(jnp.float32)
    fixed = bool(scheme.fmt.block)  # its scales are powers of two: nothing to fit

    def summed(x: jax.Array) -> jax.Array:
        return reduce_blocks(x, blocks, "sum", 0.0)

    def spread(x: jax.Array) -> jax.Array:
        return expand(x.astype(jnp.float32), scheme, w.shape)

    def error(scale: jax.Array, zero: jax.Array | None) -> jax.Array:
        return summed(jnp.abs(w - decode(encode(w, scale, zero, scheme), scale, zero, scheme)) ** p)

    def step(fit: _Fit, strength: jax.Array) -> tuple[_Fit, None]:
        scale, zero = fit.scale, fit.zero
        values = decode(encode(w, scale, zero, scheme), unit, zero, scheme)  # in steps, less the zero
        off = w / spread(scale) - values
        size = jnp.abs(off)
        shrunk = jnp.maximum(size - jnp.where(size > 0, size, 1.0) ** (p - 1) / strength, 0.0)
        target = w / spread(scale) - jnp.sign(off) * shrunk
        if float_zero and zero is not None:
            zero = zero + summed(values - target) / jnp.maximum(many, 1)
        elif not fixed:
            part = summed(values * target) / jnp.maximum(summed(jnp.square(values)), 1e-30)
            part = jnp.where(part > 0, part, 1.0)
            scale = (scale.astype(jnp.float32) * part).astype(scale.dtype)
        return _Fit(scale, zero, *_better(fit, scale, zero, error(scale, zero))), None

    many, unit = summed(jnp.ones_like(w)), jnp.ones_like(scale, jnp.float32)
    start = _Fit(scale, zero, error(scale, zero), scale, zero)
    strengths = beta * growth ** jnp.arange(steps, dtype=jnp.float32)
    found, _ = lax.scan(step, start, strengths)
    return Quantized(encode(w, found.best_scale, found.best_zero, scheme), found.best_scale, found.best_zero)


class _Fit(NamedTuple):
    """Scale and zero of this step, and each channel's or group's best so far with their error."""

    scale: jax.Array
    zero: jax.Array | None
    error: jax.Array
    best_scale: jax.Array
    best_zero: jax.Array | None


def _better(
    fit: _Fit, scale: jax.Array, zero: jax.Array | None, error: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    better = error < fit.error
    zeros = None if zero is None or fit.best_zero is None else jnp.where(better, zero, fit.best_zero)
    return jnp.where(better, error, fit.error), jnp.where(better, scale, fit.best_scale), zeros
