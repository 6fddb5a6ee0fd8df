"""The range of numbers and the scale that covers it: `lepton_jax.numerics.quantize` without codes."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lepton_jax.numerics._blocks import (
    counts_of_blocks,
    elements_of_blocks,
    expand_blocks,
    gather_blocks,
    reduce_blocks,
    shortages,
)
from lepton_jax.numerics._minifloat import exponent_of, power_of_two
from lepton_jax.numerics._scheme import Scheme
from lepton_jax.numerics.formats import Format

_TINY: Final = 2.0**-126  # the least scale: processors may take smaller numbers for zero
_HUGE: Final = 2.0**126  # the greatest scale: its reciprocal is _TINY


def scale_shape(shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    """The shape of the scale of an array of `shape`: `ceil(n / b)` along each axis of blocks of `b`.

    Example:
        >>> scale_shape((100, 8), Scheme("int4", shared=(0,), group=32))
        (4, 8)
    """
    return counts_of_blocks(tuple(shape), scheme.blocks(len(shape)))


def padding(shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    """Per axis, by how much its last group is short: 0 where groups divide the axis.

    Example:
        >>> padding((100, 8), Scheme("int4", shared=(0,), group=32))
        (28, 0)
    """
    return shortages(tuple(shape), scheme.blocks(len(shape)))


def expand(scale: jax.Array, scheme: Scheme, shape: tuple[int, ...]) -> jax.Array:
    """A scale (or zero) as what broadcasts against an array of `shape`: groups repeated, the last cut.

    Raises:
        ValueError: a scale of another rank, unless it is a scalar.
    """
    return expand_blocks(scale, scheme.blocks(len(shape)), tuple(shape))


def extremes(x: ArrayLike, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
    """The range `(lower, upper)` of `x` that its scale shall cover, each of `scale_shape`, float32.

    Symmetric: `(-m, m)` with the largest magnitude m. Otherwise min and max, zero included. With
    `Scheme.percentile`, percentiles instead of extremes.
    """
    x = jnp.asarray(x, jnp.float32)
    blocks = scheme.blocks(x.ndim)
    if scheme.percentile is not None:
        return _percentiles(x, scheme, scheme.percentile)
    if scheme.symmetric:
        most = reduce_blocks(_reaching(jnp.abs(x), x, scheme), blocks, "max", 0.0)
        return -most, most
    return reduce_blocks(x, blocks, "min", 0.0), reduce_blocks(_reaching(x, x, scheme), blocks, "max", 0.0)


def _reaching(values: jax.Array, x: jax.Array, scheme: Scheme) -> jax.Array:
    """Values with infinity for NaN: XLA's maximum along an axis loses NaN on a CPU, but not infinity."""
    return jnp.where(jnp.isnan(x), jnp.inf, values) if scheme.keep_nan else values


def _percentiles(x: jax.Array, scheme: Scheme, percentage: float) -> tuple[jax.Array, jax.Array]:
    """Percentiles as numpy's method `nearest` has them; NaN for what is not finite."""
    blocks = scheme.blocks(x.ndim)
    poison = reduce_blocks(jnp.where(jnp.isfinite(x), 0.0, jnp.nan), blocks, "sum", 0.0)
    if not x.size:
        return poison, poison
    ordered = jnp.sort(gather_blocks(jnp.abs(x) if scheme.symmetric else x, blocks, np.nan), axis=-1)
    last = elements_of_blocks(x.shape, blocks) - 1.0
    upper = jnp.maximum(_at(ordered, last * percentage / 100), 0.0) + poison
    if scheme.symmetric:
        return -upper, upper
    return jnp.minimum(_at(ordered, last * (100 - percentage) / 100), 0.0) + poison, upper


def _at(ordered: jax.Array, position: np.ndarray[Any, Any]) -> jax.Array:
    """Elements at the positions nearest to fractional ones, along the last axis."""
    where = np.broadcast_to(np.round(position).astype(np.int32), ordered.shape[:-1])
    return jnp.take_along_axis(ordered, where[..., None], axis=-1)[..., 0]


def scale_of_range(lower: ArrayLike, upper: ArrayLike, scheme: Scheme) -> tuple[jax.Array, jax.Array | None]:
    """Scale and zero for values in `[lower, upper]`: for what an observer saw.

    Args:
        lower, upper: arrays of one shape, which the results have. Zero is taken in where it lies outside.
        scheme: `shared` and `group` play no part here.

    Example:
        >>> scale, zero = scale_of_range(jnp.zeros(()), jnp.array(5.1), Scheme("int8", symmetric=False))
        >>> round(float(scale), 3), int(zero)
        (0.02, -128)
    """
    lower = jnp.minimum(jnp.asarray(lower, jnp.float32), 0.0)
    upper = jnp.maximum(jnp.asarray(upper, jnp.float32), 0.0)
    most = jnp.maximum(-lower, upper)
    if scheme.fmt.block:
        return _shared_exponent(most, scheme.fmt), None
    low, high = scheme.limits
    # Compilers turn division by a constant into multiplication, some of the time: the same numbers always,
    # if asked.
    size = (
        most * np.float32(1 / scheme.span)
        if scheme.symmetric
        else (upper - lower) * np.float32(1 / (high - low))
    )
    size = jnp.where(most < _TINY, 1.0, jnp.clip(size, _TINY, _HUGE))
    size = jnp.where(jnp.isfinite(most), size, jnp.nan).astype(scheme.scale_dtype)
    if scheme.symmetric:
        return size, None
    zero = low - jnp.round(lower * (1 / size.astype(jnp.float32)))
    return size, jnp.clip(zero, low, high).astype(jnp.int8)


def _shared_exponent(most: jax.Array, form: Format) -> jax.Array:
    """The scale of microscaling formats: the exponent of the largest magnitude less that of the format."""
    exponent = jnp.clip(exponent_of(most) - form.exponent, -126, 126)
    scale = jnp.where(most < _TINY, 1.0, power_of_two(exponent))
    return jnp.where(jnp.isfinite(most), scale, jnp.nan).astype(form.scale_dtype)


def scale_dtype_of(scheme: Scheme) -> np.dtype[Any]:
    """The dtype of the scales of a scheme."""
    return scheme.fmt.scale_dtype if scheme.fmt.block else np.dtype(jnp.dtype(scheme.scale_dtype))
