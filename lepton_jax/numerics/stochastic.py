"""Stochastic rounding: up or down at random, such that the mean is the number itself.

Gupta et al. 2015, Deep Learning with Limited Numerical Precision (arXiv 1502.02551). Rounding to nearest
loses what is less than half a step at every step of training, always in the same direction; this does not.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.numerics._minifloat import exponent_of, power_of_two
from lepton_jax.numerics._scheme import Scheme
from lepton_jax.numerics.quantize import expand


def key_of(x: jax.Array) -> jax.Array:
    """A key of random numbers made of the bits of an array of floats: equal arrays have the same.

    So rounding needs no key from outside, is the same in every run on the same numbers, and differs from step
    to step wherever the numbers do.
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jax.random.key(jnp.sum(bits, dtype=jnp.uint32))


def encode_stochastic(x: jax.Array, scale: jax.Array, scheme: Scheme, key: jax.Array) -> jax.Array:
    """Codes of an array, as `encode` makes them, but each rounded to one of its two neighbours at random.

    The one that is nearer is so much likelier that the expected value is the number. What lies beyond the
    range saturates; NaN becomes code 0 of integers and stays NaN in float8.

    Args:
        x: floats.
        scale: of `scale_shape`, or a scalar.
        scheme: symmetric, of integers or float8.
        key: of random numbers.

    Raises:
        ValueError: a format whose codes are no numbers, or a scheme with zero points.

    Example:
        >>> x = jnp.full(1000, 0.25)
        >>> codes = encode_stochastic(x, jnp.ones(()), Scheme("int8"), jax.random.key(0))
        >>> sorted(set(codes.tolist())), bool(abs(codes.mean() - 0.25) < 0.05)
        ([0, 1], True)
    """
    form = scheme.fmt
    if not scheme.symmetric or (form.kind != "integer" and form.dtype.kind in "iu"):
        raise ValueError(f"stochastic rounding is for int8 and float8 without zero points, not {scheme}")
    ratio = x.astype(jnp.float32) * expand(1 / scale.astype(jnp.float32), scheme, x.shape)
    low, high = scheme.limits
    ratio = jnp.clip(ratio, low, high)
    draw = jax.random.bits(key, x.shape, jnp.uint32) >> 8
    chance = draw.astype(jnp.float32) * np.float32(2.0**-24)
    if form.kind == "integer":
        return jnp.clip(jnp.floor(ratio + chance), low, high).astype(form.dtype)
    least = 2 - 2 ** (form.exponent_bits - 1)  # the exponent of the least normal number
    exponent = jnp.maximum(exponent_of(jnp.abs(ratio)), least)
    up, down = form.mantissa_bits - exponent, exponent - form.mantissa_bits
    whole = jnp.floor(ratio * power_of_two(up) + chance) * power_of_two(down)
    return jnp.clip(whole, low, high).astype(form.dtype)
