"""Fake quantisation with gradients, for training.

The value of each function is `decode(encode(x))`, bit for bit, so what is trained gives the same codes when
it is quantised for good. The gradients pretend that rounding is the identity (Bengio et al. 2013, arXiv
1308.3432). Forward and reverse mode work.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lepton_jax.numerics._blocks import elements_of_blocks, reduce_blocks
from lepton_jax.numerics._minifloat import power_of_two
from lepton_jax.numerics.quantize import (
    Scheme,
    encode,
    expand,
    fake_quantize,
    scale_of,
    scale_of_range,
    values_of,
)

__all__ = [
    "delayed",
    "initial_step",
    "learned_range",
    "learned_step",
    "learned_threshold",
    "straight_through",
    "threshold_scale",
]


def straight_through(
    x: ArrayLike, scheme: Scheme, scale: jax.Array | None = None, zero: jax.Array | None = None
) -> jax.Array:
    """Fake quantisation; the gradient passes where x is in the range (half a step more), otherwise it is 0.

    Args:
        x: floats; the result has its shape and dtype.
        scheme: how.
        scale, zero: as from `scale_of`, which gives them if they are None. No gradient reaches them.

    Example:
        >>> fun = lambda x: straight_through(x, Scheme("int8"), jnp.array(0.01)).sum()  # ±1.27
        >>> jax.grad(fun)(jnp.array([0.5, 2.0])).tolist()
        [1.0, 0.0]
    """
    x = jnp.asarray(x)
    if scale is None:
        scale, zero = scale_of(jax.lax.stop_gradient(x), scheme)
    return _clipped(scheme, x, jax.lax.stop_gradient(scale), zero)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _clipped(scheme: Scheme, x: jax.Array, scale: jax.Array, zero: jax.Array | None) -> jax.Array:
    return fake_quantize(x, scheme, scale, zero)


@_clipped.defjvp
def _clipped_jvp(scheme: Scheme, primals: Any, tangents: Any) -> Any:
    x, scale, zero = primals
    low, high = scheme.limits
    if scheme.fmt.block:  # a block's own scale lets its largest elements saturate
        high = 2.0 ** (scheme.fmt.exponent + 1)
        low = -high
    # An integer's range ends where rounding stops to be all that is wrong; a scale is rounded, too.
    slack = 0.501 if scheme.fmt.kind == "integer" else 1e-5 * high
    ratio = _ratio(x, scale, scheme) + _shift(zero, scheme, x.shape)
    inside = (ratio >= low - slack) & (ratio <= high + slack)
    return _clipped(scheme, x, scale, zero), jnp.where(inside, tangents[0], 0)


def _ratio(x: jax.Array, scale: jax.Array, scheme: Scheme) -> jax.Array:
    """What `encode` rounds, before the zero is added."""
    return x.astype(jnp.float32) * expand(1 / scale.astype(jnp.float32), scheme, x.shape)


def _shift(zero: jax.Array | None, scheme: Scheme, shape: tuple[int, ...]) -> jax.Array | float:
    return 0.0 if zero is None else expand(zero.astype(jnp.float32), scheme, shape)


def learned_step(x: ArrayLike, step: jax.Array, scheme: Scheme, zero: jax.Array | None = None) -> jax.Array:
    """Learned step size quantisation, LSQ: Esser et al. 2020 (arXiv 1902.08153).

    Args:
        x: floats.
        step: the scale, a parameter, of `scale_shape(x.shape, scheme)`; to be kept positive. Its gradient is
            divided by sqrt(n · high), n the elements that share it. Start from `initial_step`.
        scheme: how.
        zero: as from `scale_of`, constant; None if symmetric.

    Raises:
        ValueError: a microscaling format, whose scales are powers of two.
    """
    x = jnp.asarray(x)
    _check_free(scheme)
    counts = elements_of_blocks(x.shape, scheme.blocks(x.ndim))
    damping = 1 / np.sqrt(np.maximum(counts, 1) * scheme.limits[1])
    return _stepped(scheme, x, _damped(step, jnp.asarray(damping, jnp.float32)), zero)


def _check_free(scheme: Scheme) -> None:
    if scheme.fmt.block:
        raise ValueError(
            f"{scheme.fmt} takes powers of two as scales, which are not learned: use straight_through"
        )


@jax.custom_jvp
def _damped(x: jax.Array, factor: jax.Array) -> jax.Array:
    """`x`, with its gradient times a factor."""
    return x


@_damped.defjvp
def _damped_jvp(primals: Any, tangents: Any) -> Any:
    x, factor = primals
    return x, (tangents[0] * factor).astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _stepped(scheme: Scheme, x: jax.Array, step: jax.Array, zero: jax.Array | None) -> jax.Array:
    return fake_quantize(x, scheme, step, zero)


@_stepped.defjvp
def _stepped_jvp(scheme: Scheme, primals: Any, tangents: Any) -> Any:
    x, step, zero = primals
    low, high = scheme.limits
    ratio = _ratio(x, step, scheme)
    shift = _shift(zero, scheme, x.shape)
    rounded = values_of(encode(x, step, zero, scheme), scheme.fmt) - shift
    inside = (ratio + shift > low) & (ratio + shift < high)
    slope = jnp.where(inside, rounded - ratio, rounded)
    moved = slope * expand(tangents[1].astype(jnp.float32), scheme, x.shape)
    return _stepped(scheme, x, step, zero), jnp.where(inside, tangents[0], 0) + moved.astype(x.dtype)


def initial_step(x: ArrayLike, scheme: Scheme) -> jax.Array:
    """Where LSQ starts: `2·mean|x| / sqrt(high)`, over the elements that share a scale; 1 where x is zero.

    Raises:
        ValueError: a microscaling format.
    """
    x = jnp.asarray(x, jnp.float32)
    _check_free(scheme)
    blocks = scheme.blocks(x.ndim)
    counts = np.maximum(elements_of_blocks(x.shape, blocks), 1)
    factor = np.asarray(2 / (counts * np.sqrt(scheme.limits[1])), np.float32)
    step = reduce_blocks(jnp.abs(x), blocks, "sum", 0.0) * factor
    return jnp.where(step > 0, step, 1.0)


def learned_threshold(
    x: ArrayLike, log2_threshold: jax.Array, scheme: Scheme, power_of_two: bool = False
) -> jax.Array:
    """Trained thresholds, TQT: Jain et al. 2020 (arXiv 1903.08066), for symmetric schemes.

    Args:
        x: floats.
        log2_threshold: the logarithm of what is the largest magnitude, a parameter, of `scale_shape`. Being a
            logarithm it stays valid whatever training does to it.
        scheme: how.
        power_of_two: rounds the threshold up to a power of two, as the paper does: scales are shifts then.

    Raises:
        ValueError: an affine scheme, or a microscaling format.
    """
    return _stepped(scheme, jnp.asarray(x), threshold_scale(log2_threshold, scheme, power_of_two), None)


def threshold_scale(log2_threshold: jax.Array, scheme: Scheme, power_of_two: bool = False) -> jax.Array:
    """The scale that `learned_threshold` uses: what to encode with after training; float32.

    Raises:
        ValueError: an affine scheme, or a microscaling format.
    """
    _check_free(scheme)
    if not scheme.symmetric:
        raise ValueError("a threshold is one end of a symmetric range: use learned_range for affine schemes")
    log2 = jnp.asarray(log2_threshold, jnp.float32)
    if power_of_two:
        return _power_scale(scheme, log2)
    return jnp.exp2(jnp.clip(log2, -100, 100)) * np.float32(1 / scheme.span)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _power_scale(scheme: Scheme, log2: jax.Array) -> jax.Array:
    exponent = jnp.ceil(log2).astype(jnp.int32) - (scheme.fmt.exponent + 1)
    return power_of_two(jnp.clip(exponent, -126, 126))


@_power_scale.defjvp
def _power_scale_jvp(scheme: Scheme, primals: Any, tangents: Any) -> Any:
    scale = _power_scale(scheme, *primals)
    return scale, tangents[0] * scale * np.float32(np.log(2))


def learned_range(x: ArrayLike, lower: jax.Array, upper: jax.Array, scheme: Scheme) -> jax.Array:
    """Learned clipping: PACT, Choi et al. 2018 (arXiv 1805.06085), with both ends.

    The gradient of an end is that of the values beyond it. PACT itself has lower 0, and an affine scheme.

    Args:
        x: floats.
        lower, upper: the range, parameters, of `scale_shape`, with zero between them; `scale_of_range` gives
            scale and zero.
        scheme: how; if symmetric, the larger magnitude counts for both ends.

    Raises:
        ValueError: a microscaling format.
    """
    _check_free(scheme)
    if scheme.symmetric:
        upper = jnp.maximum(-lower, upper)
        lower = -upper
    return _ranged(scheme, jnp.asarray(x), lower, upper)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _ranged(scheme: Scheme, x: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    return fake_quantize(x, scheme, *scale_of_range(lower, upper, scheme))


@_ranged.defjvp
def _ranged_jvp(scheme: Scheme, primals: Any, tangents: Any) -> Any:
    x, lower, upper = primals
    moved, moved_lower, moved_upper = tangents
    below = x < expand(lower, scheme, x.shape)
    above = x > expand(upper, scheme, x.shape)
    ends = jnp.where(above, expand(moved_upper, scheme, x.shape), expand(moved_lower, scheme, x.shape))
    return _ranged(scheme, x, lower, upper), jnp.where(below | above, ends.astype(x.dtype), moved)


def delayed(fake: jax.Array, x: jax.Array, step: jax.Array | int, start: int) -> jax.Array:
    """`x` before training step `start`, its quantised form `fake` from then on."""
    return jnp.where(jnp.asarray(step) >= start, fake, x)
