"""Floats of a few bits without infinity or NaN, as bit patterns, in ordinary arithmetic.

XLA has no arithmetic for these on most backends, and none at all for six bits; numpy has, by `ml_dtypes`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lepton_jax.numerics.formats import Format

_BIAS = 127  # of float32
_MANTISSA = 23


def power_of_two(exponent: jax.Array) -> jax.Array:
    """2 to an int32 power between −126 and 127, exactly; float32."""
    return jax.lax.bitcast_convert_type((exponent + _BIAS) << _MANTISSA, jnp.float32)


def exponent_of(magnitude: jax.Array) -> jax.Array:
    """`floor(log2(x))` of non-negative float32, exactly, int32; −127 for zero and subnormal numbers."""
    bits: jax.Array = jax.lax.bitcast_convert_type(magnitude, jnp.int32)
    exponent: jax.Array = (bits >> _MANTISSA) - _BIAS
    return exponent


def to_bits(x: jax.Array, form: Format) -> jax.Array:
    """The code of the nearest value, ties to even, uint8; float32 saturates, NaN is 0."""
    mantissa, bias = form.mantissa_bits, 2 ** (form.exponent_bits - 1) - 1
    magnitude = jnp.where(jnp.isnan(x), 0.0, jnp.minimum(jnp.abs(x), form.high))
    exponent = jnp.maximum(exponent_of(magnitude), 1 - bias)
    digits = jnp.round(magnitude * power_of_two(mantissa - exponent)).astype(jnp.int32)
    # The digits of a normal number begin with a one, which adds 1 to the exponent; so does a carry.
    code = ((exponent + (bias - 1)) << mantissa) + digits
    sign = jnp.signbit(x).astype(jnp.int32) << (form.bits - 1)
    bits: jax.Array = (sign | code).astype(jnp.uint8)
    return bits


def from_bits(codes: jax.Array, form: Format) -> jax.Array:
    """The value of each code, float32."""
    mantissa, bias = form.mantissa_bits, 2 ** (form.exponent_bits - 1) - 1
    bits = codes.astype(jnp.int32)
    exponent = (bits >> mantissa) & (2**form.exponent_bits - 1)
    digits = bits & (2**mantissa - 1)
    digits = jnp.where(exponent > 0, digits + 2**mantissa, digits).astype(jnp.float32)
    value = digits * power_of_two(jnp.maximum(exponent, 1) - (bias + mantissa))
    return jnp.where(bits >> (form.bits - 1) > 0, -value, value)
