"""A program for the tests of `lepton.optimize`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax


def noisy(x: Any) -> Any:
    """A function with something to optimise."""
    y = jnp.transpose(jnp.transpose(x)) * 1.0
    return jnp.sin(y) + jnp.sin(y) + lax.cond(True, lambda v: v, jnp.cos, y)
