"""What the losses share: wide arrays, weights, means, directions, divergences."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def divergence(p: jax.Array, q: jax.Array) -> jax.Array:
    """Σ exp(p)·(p - q) of log-probabilities over the last axis; where p is -inf, nothing."""
    there = p != -jnp.inf
    p, q = jnp.where(there, p, 0), jnp.where(there, q, 0)
    return jnp.sum(jnp.where(there, jnp.exp(p) * (p - q), 0), -1)


def unit(x: jax.Array) -> jax.Array:
    """Vectors of the last axis scaled to length 1; those of zeros stay, and have no gradient."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), -1, keepdims=True, initial=0))
    x = x / jnp.where(largest > 0, largest, 1)
    square = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1))


def wide(x: Any) -> jax.Array:
    found = jnp.asarray(x)
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))


def clean(
    arrays: tuple[Any, ...], where: Any, leading: int
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """Arrays in float32 or wider with zeros where weights are 0, and the weights in their leading dimensions.

    Raises:
        ValueError: the weights have another shape.
    """
    given = tuple(map(wide, arrays))
    if where is None:
        return given, None
    shape = given[0].shape[:leading]
    where = jnp.asarray(where)
    if where.shape != shape[: where.ndim]:
        raise ValueError(f"where has the shape {where.shape}; it weighs values of shape {shape}")
    keep = jnp.broadcast_to(where.reshape(where.shape + (1,) * (leading - where.ndim)), shape)

    def cleaned(x: jax.Array) -> jax.Array:
        return jnp.where(keep.reshape(shape + (1,) * (x.ndim - leading)) > 0, x, 0)

    return tuple(map(cleaned, given)), keep.astype(given[0].dtype)


def mean(values: jax.Array, keep: jax.Array | None) -> jax.Array:
    """The weighted mean; 0 where there is nothing."""
    if keep is None:
        return jnp.sum(values) / max(values.size, 1)
    total = jnp.sum(keep)
    return jnp.sum(values * keep) / jnp.where(total > 0, total, 1)


def same_shape(name: str, student: Any, teacher: Any) -> None:
    if jnp.shape(student) != jnp.shape(teacher):
        raise ValueError(
            f"{name} compares arrays of one shape, not the student's {jnp.shape(student)} "
            f"and the teacher's {jnp.shape(teacher)}"
        )


def positive(name: str, value: float) -> None:
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{name} is positive, not {value}")
