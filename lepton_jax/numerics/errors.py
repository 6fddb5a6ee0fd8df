"""How much of an array quantisation, pruning or any approximation lost.

Whether two results agree up to rounding is another question: `lepton_jax.numerics.compare`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def sqnr(x: ArrayLike, approximation: ArrayLike) -> jax.Array:
    """Signal to quantisation noise ratio in decibels: `10·log10(Σx² / Σ(x − x̂)²)`; infinite if equal.

    Example:
        >>> float(sqnr(jnp.ones(4), jnp.full(4, 0.9)).round())
        20.0
    """
    return -20 * jnp.log10(relative_error(x, approximation))


def cosine(x: ArrayLike, approximation: ArrayLike) -> jax.Array:
    """The cosine of the angle between two arrays taken as vectors; 1 if both are zero, 0 if one is."""
    a, b = _unit(x), _unit(approximation)
    both = ~(a.any() | b.any())
    return jnp.where(both, 1.0, jnp.sum(a * b) / jnp.maximum(_norm(a) * _norm(b), 1.0))


def relative_error(x: ArrayLike, approximation: ArrayLike) -> jax.Array:
    """`‖x − x̂‖ / ‖x‖`, Euclidean; 0 if equal, infinite if x alone is zero."""
    x, other = jnp.asarray(x, jnp.float32), jnp.asarray(approximation, jnp.float32)
    size = _size(x)
    off = _norm((x - other) / size)
    return jnp.where(off == 0, 0.0, off / _norm(x / size))


def _unit(x: ArrayLike) -> jax.Array:
    """An array over its largest magnitude, so that squares neither overflow nor vanish."""
    x = jnp.asarray(x, jnp.float32)
    return x / _size(x)


def _size(x: jax.Array) -> jax.Array:
    """The largest magnitude, or a number near enough to it whose reciprocal no processor takes for zero."""
    size = jnp.max(jnp.abs(x), initial=0.0)
    return jnp.where(size > 0, jnp.clip(size, 2.0**-100, 2.0**100), 1.0)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(x * x))
