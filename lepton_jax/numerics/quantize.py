"""Quantisation: from floats to codes and scales, and back.

All functions are traceable and work under jit, vmap and scan; they compute in float32 whatever the dtype of
the array (float64 too), and round half to even. What lies beyond the range of a format saturates. Ranges,
scales and codes are the same bits however a program is compiled, but for what rests on sums: the choice of
`search="mse"` between two ranges that are as good as equal.

NaN and infinity: a scale that is computed from them is NaN, so everything that shares it decodes to NaN, and
nothing is lost in silence (`Scheme.keep_nan`). Under a scale that comes from elsewhere (calibration),
infinities saturate, and NaN becomes code 0 of integers and the value 0 of the other formats, except float8,
which keep it. `has_nonfinite` finds them beforehand.
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from math import prod
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lepton_jax.numerics._blocks import reduce_blocks
from lepton_jax.numerics._minifloat import from_bits, to_bits
from lepton_jax.numerics._scales import (
    expand,
    extremes,
    padding,
    scale_dtype_of,
    scale_of_range,
    scale_shape,
)
from lepton_jax.numerics._scheme import Scheme
from lepton_jax.numerics.formats import Format
from lepton_jax.numerics.packing import packed_axis, packed_size

__all__ = [
    "Quantized",
    "Scheme",
    "decode",
    "dequantize",
    "encode",
    "expand",
    "extremes",
    "fake_quantize",
    "has_nonfinite",
    "nbytes",
    "padding",
    "quantize",
    "scale_of",
    "scale_of_range",
    "scale_shape",
]

_SHRINKS: Final = tuple(np.linspace(1.0, 0.2, 41).round(2).tolist())


class Quantized(NamedTuple):
    """An array in codes.

    Attributes:
        codes: the shape of the array, one code an element (not packed), in `Format.dtype`.
        scale: the rank of the array: 1 along shared axes, the number of groups along grouped axes,
            otherwise the array's size: see `scale_shape`. Positive; float32, bfloat16, or float8_e8m0fnu.
        zero: int8, the code of zero, of the shape of `scale`; None if symmetric.
    """

    codes: jax.Array
    scale: jax.Array
    zero: jax.Array | None = None


def nbytes(shape: tuple[int, ...], scheme: Scheme) -> int:
    """Bytes of an array of `shape` with its codes packed along `packed_axis`: codes, scales and zeros."""
    shape = tuple(shape)
    codes = prod(shape) if shape else 1
    if codes and shape:
        size = shape[packed_axis(shape, scheme.fmt.bits)]
        codes = codes // size * packed_size(size, scheme.fmt.bits)
    zeros = 0 if scheme.symmetric else 1
    return codes + prod(scale_shape(shape, scheme)) * (scale_dtype_of(scheme).itemsize + zeros)


def scale_of(x: ArrayLike, scheme: Scheme) -> tuple[jax.Array, jax.Array | None]:
    """Scale and zero for an array, by `Scheme.search`; shapes are `scale_shape(x.shape, scheme)`.

    What is zero everywhere has scale 1.
    """
    x = jnp.asarray(x)
    lower, upper = extremes(x, scheme)
    if scheme.search == "absmax":
        return scale_of_range(lower, upper, scheme)
    return _least_error(x, lower, upper, scheme)


def _least_error(
    x: jax.Array, lower: jax.Array, upper: jax.Array, scheme: Scheme
) -> tuple[jax.Array, jax.Array | None]:
    """Of shrunk ranges the one whose error, squared and summed, is least; of equals the widest."""
    x = x.astype(jnp.float32)
    blocks = scheme.blocks(x.ndim)

    def error(factor: jax.Array) -> jax.Array:
        scale, zero = scale_of_range(lower * factor, upper * factor, scheme)
        off = decode(encode(x, scale, zero, scheme), scale, zero, scheme) - x
        return reduce_blocks(off * off, blocks, "sum", 0.0)

    def attempt(
        best: tuple[jax.Array, jax.Array], factor: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        least, chosen = best
        now = error(factor)
        better = now < least
        return (jnp.where(better, now, least), jnp.where(better, factor, chosen)), None

    # A microscaling range matters by its power of two alone; twice as wide can be better, since the range of
    # the largest exponent saturates.
    first, *others = (1.0, 2.0, 0.5) if scheme.fmt.block else _SHRINKS
    start = error(jnp.float32(first)), jnp.full_like(lower, first)
    (_, factor), _ = jax.lax.scan(attempt, start, jnp.array(others, jnp.float32))
    return scale_of_range(lower * factor, upper * factor, scheme)


def encode(x: ArrayLike, scale: jax.Array, zero: jax.Array | None, scheme: Scheme) -> jax.Array:
    """Codes of an array of floats under a given scale: `saturate(round(x · (1/scale)) + zero)` for integers.

    Args:
        x: floats.
        scale, zero: of `scale_shape`, or scalars. A zero in floating point is added before rounding.
        scheme: how.

    Returns:
        Codes in `Format.dtype`, of the shape of `x`. In `table` formats, a value halfway between two goes to
        the lesser.
    """
    x = jnp.asarray(x, jnp.float32)
    form = scheme.fmt
    ratio = x * expand(1 / scale.astype(jnp.float32), scheme, x.shape)
    low, high = scheme.limits
    if form.kind == "float" and form.bits == 8:
        return jnp.clip(ratio, low, high).astype(form.dtype)
    if form.kind == "float":
        return to_bits(ratio, form)
    if form.kind == "table":
        return _nearest(ratio, form)
    if zero is not None and jnp.issubdtype(zero.dtype, jnp.floating):
        ratio = jnp.round(ratio + expand(zero.astype(jnp.float32), scheme, x.shape))
    elif zero is not None:
        ratio = jnp.round(ratio) + expand(zero.astype(jnp.float32), scheme, x.shape)
    else:
        ratio = jnp.round(ratio)
    return jnp.clip(ratio, low, high).astype(form.dtype)


def _nearest(x: jax.Array, form: Format) -> jax.Array:
    """The index of the nearest value: how many midpoints lie below. NaN has the index of zero."""
    values = form.levels.astype(np.float64)
    middles = [np.float32((below + above) / 2) for below, above in pairwise(values)]
    x = jnp.where(jnp.isnan(x), 0.0, x)
    return reduce(jnp.add, [(x > middle).astype(jnp.uint8) for middle in middles])


def decode(
    codes: jax.Array, scale: jax.Array, zero: jax.Array | None, scheme: Scheme, dtype: Any = jnp.float32
) -> jax.Array:
    """The array that codes stand for: `(value(code) - zero) · scale` in float32, then `dtype`."""
    values = values_of(codes, scheme.fmt)
    if zero is not None:
        values = values - expand(zero.astype(jnp.float32), scheme, codes.shape)
    return (values * expand(scale.astype(jnp.float32), scheme, codes.shape)).astype(dtype)


def values_of(codes: jax.Array, form: Format) -> jax.Array:
    """The value of each code before its scale, float32."""
    if form.kind == "table":
        return _pick(codes, [jnp.float32(value) for value in form.table], form.bits - 1)
    if form.dtype == np.uint8:
        return from_bits(codes, form)
    return codes.astype(jnp.float32)


def _pick(codes: jax.Array, values: list[jax.Array], bit: int) -> jax.Array:
    """A table as a tree of choices by the bits of the code: for few entries faster than a gather."""
    if bit < 0:
        return values[0]
    half = len(values) // 2
    chosen = ((codes >> bit) & 1).astype(bool)
    return jnp.where(chosen, _pick(codes, values[half:], bit - 1), _pick(codes, values[:half], bit - 1))


def quantize(x: ArrayLike, scheme: Scheme) -> Quantized:
    """Codes, scale and zero of an array.

    Example:
        >>> w = jnp.array([[1.0, -2.0], [0.5, 1.0]])
        >>> quantize(w, Scheme("int8", shared=(0,))).codes.tolist()
        [[127, -127], [64, 64]]
    """
    scale, zero = scale_of(x, scheme)
    return Quantized(encode(x, scale, zero, scheme), scale, zero)


def dequantize(q: Quantized, scheme: Scheme, dtype: Any = jnp.float32) -> jax.Array:
    """The array that codes, scale and zero stand for."""
    return decode(*q, scheme, dtype)


def fake_quantize(
    x: ArrayLike, scheme: Scheme, scale: jax.Array | None = None, zero: jax.Array | None = None
) -> jax.Array:
    """`decode(encode(x))`, of the dtype of `x`; with its own scale (`scale_of`) unless one is given.

    The gradient is that of rounding: zero almost everywhere. For training see
    `lepton_jax.numerics.straight_through`.
    """
    x = jnp.asarray(x)
    if scale is None:
        scale, zero = scale_of(x, scheme)
    return decode(encode(x, scale, zero, scheme), scale, zero, scheme, x.dtype)


def has_nonfinite(x: ArrayLike) -> jax.Array:
    """Whether there is a NaN or an infinity in `x`: a boolean scalar."""
    return ~jnp.isfinite(x).all()
