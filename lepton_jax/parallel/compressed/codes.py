"""Messages: arrays in codes of 8 bits with a scale for each block, as bytes that one collective carries."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics.quantize import Quantized, Scheme, dequantize, quantize

FORMATS: Final = ("int8", "fp8_e4m3", "fp8_e5m2")
"""The formats of codes."""

SCALE_BYTES: Final = 2
"""A scale is a bfloat16: what it loses is in the codes' error, which feedback makes good."""


@cache
def scheme(form: str, block: int) -> Scheme:
    """How blocks along the last axis are quantised: symmetric, the scale by the largest magnitude."""
    return Scheme(form, group=block, group_axis=-1, scale_dtype="bfloat16")


def message_bytes(size: int, block: int) -> int:
    """Bytes of `size` elements: a code each, and a scale for each block.

    Example:
        >>> message_bytes(512, 256)
        516
    """
    return size + SCALE_BYTES * -(-size // block)


def to_message(x: jax.Array, form: str, block: int) -> jax.Array:
    """The codes of the last axis and behind them the bytes of their scales.

    One array rather than two, so that one collective carries it, and of int8, which every backend sends.

    Args:
        x: float32[..., m], `block` divides m.
        form: one of `FORMATS`.
        block: elements that share a scale.

    Returns:
        int8[..., message_bytes(m, block)].
    """
    q = quantize(x, scheme(form, block))
    scales = lax.bitcast_convert_type(q.scale, jnp.int8)
    flat = scales.reshape(*x.shape[:-1], SCALE_BYTES * q.scale.shape[-1])
    return lax.concatenate([lax.bitcast_convert_type(q.codes, jnp.int8), flat], x.ndim - 1)


def from_message(message: jax.Array, size: int, form: str, block: int) -> jax.Array:
    """The float32[..., size] that messages of `to_message` stand for."""
    how = scheme(form, block)
    codes = lax.slice_in_dim(message, 0, size, axis=-1)
    scales = lax.slice_in_dim(message, size, message.shape[-1], axis=-1)
    pairs = scales.reshape(*scales.shape[:-1], size // block, SCALE_BYTES)
    scale: Any = lax.bitcast_convert_type(pairs, jnp.bfloat16)
    return dequantize(Quantized(lax.bitcast_convert_type(codes, how.fmt.dtype), scale), how)


def error_of(x: jax.Array, message: jax.Array, form: str, block: int) -> jax.Array:
    """What a message has lost of `x`; 0 where that is not finite, so that one bad step leaves no trace."""
    lost = x - from_message(message, x.shape[-1], form, block)
    return jnp.where(jnp.isfinite(lost), lost, 0.0)
