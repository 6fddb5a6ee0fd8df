"""PowerSGD: gradients as products of two thin matrices (Vogels, Karimireddy and Jaggi, 2019).

One step of power iteration, begun with the factor of the step before (warm start), finds a good product;
since its factors are sums over devices, they are all-reduced as they are. What the product lacks is fed back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_EPSILON: Final = 1e-12
View = tuple[int, int, int]
"""How many matrices, their rows and columns."""


def matrices_of(shape: Sequence[int], rank: int, least: float) -> View | None:
    """How a gradient is taken as matrices; None if that does not make it `least` times smaller.

    Three dimensions are a stack of matrices (layers that are scanned over) where this is small enough;
    otherwise all dimensions but the last are the rows (convolutions).

    Example:
        >>> [matrices_of(shape, 4, 2.0) for shape in ((24, 512, 512), (3, 3, 64, 128), (512,))]
        [(24, 512, 512), (1, 576, 128), None]
    """
    views: list[View] = []
    if len(shape) == 3:
        views.append((shape[0], shape[1], shape[2]))
    if len(shape) >= 2:
        views.append((1, math.prod(shape[:-1]), shape[-1]))
    for count, rows, columns in views:
        if rows * columns >= least * rank * (rows + columns) and rank <= min(rows, columns) and count:
            return count, rows, columns
    return None


def first_factor(view: View, rank: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Where power iteration starts: normal numbers, the same everywhere; float32[count, columns, rank]."""
    count, _, columns = view
    return np.random.default_rng(seed).standard_normal((count, columns, rank), np.float32)


def orthogonal(p: jax.Array) -> jax.Array:
    """The columns of float32[..., rows, rank] orthonormal (modified Gram-Schmidt); dependent ones are 0."""
    sizes = jnp.linalg.norm(p, axis=-2, keepdims=True)
    columns: list[jax.Array] = []
    for i in range(p.shape[-1]):
        column, p = p[..., :1], p[..., 1:]
        left = jnp.linalg.norm(column, axis=-2, keepdims=True)
        # Of what is nothing but rounding no direction is made.
        keeps = left > jnp.maximum(1e-6 * sizes[..., i : i + 1], _EPSILON)
        column = jnp.where(keeps | jnp.isnan(left), column / jnp.where(keeps, left, 1.0), 0.0)
        columns.append(column)
        p = p - column * (column * p).sum(-2, keepdims=True)
    return jnp.concatenate(columns, -1)


def power_all_reduce(
    gradients: Sequence[jax.Array],
    factors: Sequence[jax.Array],
    axes: Sequence[str],
    local: Sequence[jax.Array] | None = None,
    scale: float = 1.0,
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """The sums over devices times `scale`, in the best rank that one power iteration finds.

    All left factors travel together, and all right ones: two all-reduces however many gradients there are.

    Args:
        gradients: float32[count, rows, columns] each, as `matrices_of` says.
        factors: float32[count, columns, rank] each, the right factors of the step before or `first_factor`.
        axes: of the `jax.shard_map` around.
        local: what this device lost before, as the gradients; None: nothing.
        scale: 1 / n for the mean.

    Returns:
        The sums, the right factors for the next step, and what this device lost.
    """
    if local is not None:
        gradients = [g + lost for g, lost in zip(gradients, local, strict=True)]
    pairs = list(zip(gradients, factors, strict=True))
    left = [orthogonal(p) for p in _summed([_product(m, q) for m, q in pairs], axes)]
    own = [_product(jnp.swapaxes(m, 1, 2), p) for m, p in zip(gradients, left, strict=True)]
    right = [q * jnp.float32(scale) for q in _summed(own, axes)]
    sums = [_product(p, jnp.swapaxes(q, 1, 2)) for p, q in zip(left, right, strict=True)]
    lost = [m - _product(p, jnp.swapaxes(q, 1, 2)) for m, p, q in zip(gradients, left, own, strict=True)]
    kept = [jnp.where(_good(q), q, old) for q, old in zip(right, factors, strict=True)]
    return sums, kept, [jnp.where(jnp.isfinite(e), e, 0.0) for e in lost]


def _good(q: jax.Array) -> jax.Array:
    """Of each matrix whether its factor can start the next iteration: finite, and no column of zeros."""
    return (jnp.isfinite(q) & (jnp.abs(q).max(1, keepdims=True) > _EPSILON)).all((1, 2), keepdims=True)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _summed(parts: Sequence[jax.Array], axes: Sequence[str]) -> list[jax.Array]:
    """The sums over devices by one all-reduce."""
    if not parts:
        return []
    whole = lax.psum(jnp.concatenate([part.reshape(-1) for part in parts]), tuple(axes))
    ends = np.cumsum([part.size for part in parts])[:-1].tolist()
    return [each.reshape(part.shape) for each, part in zip(jnp.split(whole, ends), parts, strict=True)]
