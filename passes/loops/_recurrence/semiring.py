"""Sums that are not sums: maxima, minima, and logarithms of sums of exponentials, where products are sums."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax import lax

ZEROS: Final = {"max": -np.inf, "min": np.inf, "log": -np.inf}
"""What adds nothing."""


def nothing(shape: tuple[int, ...], dtype: Any, kind: str) -> Any:
    """An array that adds nothing."""
    return jnp.full(shape, ZEROS[kind], dtype)


def total(x: Any, axes: tuple[int, ...], kind: str) -> Any:
    """The sum over axes."""
    if all(x.shape[a] == 1 for a in axes):
        return lax.squeeze(x, axes)
    if kind == "max":
        return jnp.max(x, axes)
    if kind == "min":
        return jnp.min(x, axes)
    most = jnp.max(x, axes)
    by = _finite(most)
    return _log(jnp.sum(jnp.exp(x - jnp.expand_dims(by, axes)), axes), by, most)


def plus(x: Any, y: Any, kind: str) -> Any:
    """The sum of two."""
    if kind == "max":
        return jnp.maximum(x, y)
    if kind == "min":
        return jnp.minimum(x, y)
    most = jnp.maximum(x, y)
    by = _finite(most)
    return _log(jnp.exp(x - by) + jnp.exp(y - by), by, most)


def _finite(most: Any) -> Any:
    """What to subtract from exponents: the largest, or nothing where that is not finite."""
    return lax.stop_gradient(jnp.where(jnp.isfinite(most), most, jnp.zeros_like(most)))


def _log(added: Any, by: Any, most: Any) -> Any:
    """log(added) + by, and minus infinity with gradients of zero where nothing was added."""
    dead = most == -np.inf
    return jnp.where(dead, jnp.full_like(by, -np.inf), jnp.log(jnp.where(dead, 1, added)) + by)
