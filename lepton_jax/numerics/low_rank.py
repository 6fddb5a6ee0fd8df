"""Matrices as products of two thin ones, with the least error of the weight or of its output.

The truncated singular value decomposition is the best approximation of a rank (Eckart and Young, 1936). Of a
weight W[K, N] whose inputs x have second moments H = Σ x xᵀ, the squared error of the output is tr(Δᵀ H Δ) =
|Rᵀ Δ|² with H = R Rᵀ, so that the best approximation is that of Rᵀ W: SVD-LLM (Wang et al.,
arXiv:2403.07378), after ASVD (Yuan et al., arXiv:2312.05821). With V the first right
singular vectors of Rᵀ W it is (W V) Vᵀ: no inverse is needed, and a singular H does no harm.

Everything is computed in float32 whatever the weight is. The gradient goes through W V with V as it is, since
that of singular vectors is unbounded where singular values are equal.
"""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._rows import factored, normalised

DAMPING: Final = 0.01
"""What part of the mean diagonal of second moments is added to it: inputs that were not seen count too."""

_SKETCHED: Final = 768
"""Few vectors of matrices with so many rows and columns at least are found by random projection."""

_SHARE: Final = 6
"""How many times more rows and columns than wanted vectors a matrix has for that."""

_MORE: Final = 16
_ITERATIONS: Final = 4


class Factors(NamedTuple):
    """A matrix as a product of two, whose columns and rows have the same norms.

    Attributes:
        left: [..., K, rank], the dtype of the matrix.
        right: [..., rank, N].
    """

    left: jax.Array
    right: jax.Array


@partial(jax.jit, static_argnames=("rank", "damping"))
def factorize(
    matrix: jax.Array, rank: int, hessian: jax.Array | None = None, *, damping: float = DAMPING
) -> Factors:
    """The product of two thin matrices that is nearest to a matrix.

    Args:
        matrix: floats[..., K, N].
        rank: of the result, 1 to min(K, N).
        hessian: Σ x xᵀ of the inputs, f32[..., K, K]: the output of the matrix changes least. Its scale does
            not matter; where it is not finite, it is as if there were none.
        damping: the part of the Hessian's mean diagonal that is added to the diagonal.

    Returns:
        The two, in the dtype of the matrix.

    Raises:
        ValueError: the rank is out of range, or the Hessian does not fit.

    Example:
        >>> left, right = factorize(jnp.outer(jnp.arange(3.0), jnp.ones(4)), 1)
        >>> left.shape, right.shape
        ((3, 1), (1, 4))
    """
    basis = right_basis(matrix, rank, hessian, damping=damping)
    wide = matrix.astype(jnp.float32)
    left = jnp.matmul(wide, jnp.swapaxes(basis, -1, -2), precision=lax.Precision.HIGHEST)
    size = lax.stop_gradient(jnp.sqrt(jnp.linalg.norm(left, axis=-2, keepdims=True)))
    scale = jnp.where(size > 0, size, 1.0)
    right = basis * jnp.swapaxes(scale, -1, -2)
    return Factors((left / scale).astype(matrix.dtype), right.astype(matrix.dtype))


def right_basis(
    matrix: jax.Array, rank: int, hessian: jax.Array | None = None, *, damping: float = DAMPING
) -> jax.Array:
    """The first right singular vectors of a matrix as the Hessian of its inputs sees it: f32[..., rank, N].

    The arguments are those of `factorize`. There is no gradient.
    """
    least = min(matrix.shape[-2:])
    if not 1 <= rank <= least:
        raise ValueError(f"a matrix of shape {matrix.shape[-2:]} has ranks 1 to {least}, not {rank}")
    seen = lax.stop_gradient(whitened(matrix, hessian, damping=damping))
    if least >= _SKETCHED and rank * _SHARE <= least:
        return _sketched(seen, rank)
    return jnp.linalg.svd(seen, full_matrices=False)[2][..., :rank, :]


def singular_values(
    matrix: jax.Array, hessian: jax.Array | None = None, *, damping: float = DAMPING
) -> jax.Array:
    """The singular values of a matrix as the Hessian of its inputs sees it, falling: f32[..., min(K, N)].

    The squares of those that are cut off are the squared error. The arguments are those of `factorize`.
    """
    return jnp.linalg.svd(whitened(matrix, hessian, damping=damping), compute_uv=False)


def whitened(matrix: jax.Array, hessian: jax.Array | None = None, *, damping: float = DAMPING) -> jax.Array:
    """Rᵀ W with H = R Rᵀ, of mean diagonal one: what the inputs see of a matrix W[..., K, N], in float32.

    Raises:
        ValueError: the Hessian is not [..., K, K].
    """
    wide = matrix.astype(jnp.float32)
    if hessian is None:
        return wide
    wanted = (*matrix.shape[:-2], matrix.shape[-2], matrix.shape[-2])
    if hessian.shape != wanted:
        raise ValueError(f"a matrix of shape {matrix.shape} needs a Hessian of {wanted}, not {hessian.shape}")
    root = partial(_root, damping=damping)
    for _ in matrix.shape[:-2]:
        root = jax.vmap(root)
    return jnp.matmul(root(hessian.astype(jnp.float32)), wide, precision=lax.Precision.HIGHEST)


def _root(hessian: jax.Array, *, damping: float) -> jax.Array:
    """Rᵀ."""
    return factored(normalised(hessian), damping)[0].T


def _sketched(matrix: jax.Array, rank: int) -> jax.Array:
    """The first right singular vectors by random projection (Halko et al., arXiv:0909.4061)."""
    columns = min(rank + _MORE, *matrix.shape[-2:])
    turned = jnp.swapaxes(matrix, -1, -2)
    product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    start = jax.random.normal(jax.random.key(0), (*matrix.shape[:-2], matrix.shape[-2], columns))
    rows = product(turned, start)
    for _ in range(_ITERATIONS):
        rows = product(turned, _orthonormal(product(matrix, _orthonormal(rows))))
    rows = _orthonormal(rows)
    within = jnp.linalg.svd(product(matrix, rows), full_matrices=False)[2]
    return product(within, jnp.swapaxes(rows, -1, -2))[..., :rank, :]


def _orthonormal(columns: jax.Array) -> jax.Array:
    return jnp.linalg.qr(columns)[0]
