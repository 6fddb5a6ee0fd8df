"""Kernels of convolutions as chains of smaller ones: along channels, along space, or both (Tucker).

A kernel is seen as [inputs, space..., outputs]. Jaderberg et al. ("Speeding up Convolutional Neural Networks
with Low Rank Expansions", arXiv:1405.3866) split space; Zhang et al. (arXiv:1505.06798) the outputs, by what
the inputs make of them; Kim et al. (arXiv:1511.06530) both channels, a Tucker-2 decomposition.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics.low_rank import Factors, factorize, right_basis, singular_values, whitened


class Tucker(NamedTuple):
    """A kernel with fewer channels within: `kernel[i, s, o] ≈ Σ inputs[i, p] core[p, s, q] outputs[q, o]`.

    Attributes:
        inputs: [inputs, first].
        core: [first, space..., second].
        outputs: [second, outputs].
    """

    inputs: jax.Array
    core: jax.Array
    outputs: jax.Array


def channel_factors(kernel: jax.Array, rank: int, hessian: jax.Array | None = None) -> Factors:
    """A kernel with fewer outputs, and a 1×1 kernel that makes the outputs of them.

    Args:
        kernel: floats[inputs, space..., outputs].
        rank: the channels between, 1 to min(inputs · space, outputs).
        hessian: of patches, their channels before their positions, f32[inputs · space, inputs · space].

    Returns:
        [inputs, space..., rank] and [rank, outputs].

    Raises:
        ValueError: the rank is out of range, or the Hessian does not fit.
    """
    left, right = factorize(_flat(kernel), rank, hessian)
    return Factors(left.reshape(*kernel.shape[:-1], rank), right)


def spatial_factors(kernel: jax.Array, rank: int, hessian: jax.Array | None = None) -> Factors:
    """A kernel along the first axis of space, and one along the others.

    Args:
        kernel: floats[inputs, height, others..., outputs].
        rank: the channels between, 1 to min(inputs · height, others · outputs).
        hessian: as in `channel_factors`; what counts of it is how one column of a patch goes with itself.

    Returns:
        [inputs, height, rank] and [rank, others..., outputs].

    Raises:
        ValueError: the rank is out of range, the Hessian does not fit, or space has one axis only.
    """
    if kernel.ndim < 4:
        raise ValueError(f"a kernel of shape {kernel.shape} has no two axes of space")
    columns, rest = math.prod(kernel.shape[:2]), math.prod(kernel.shape[2:])
    left, right = factorize(kernel.reshape(columns, rest), rank, column_hessian(hessian, kernel.shape))
    return Factors(left.reshape(*kernel.shape[:2], rank), right.reshape(rank, *kernel.shape[2:]))


def tucker_factors(
    kernel: jax.Array, ranks: tuple[int, int], hessian: jax.Array | None = None, *, sweeps: int = 1
) -> Tucker:
    """A 1×1 kernel to fewer inputs, a kernel to fewer outputs, and a 1×1 kernel to all outputs.

    The bases are those of the higher-order singular value decomposition (De Lathauwer et al., 2000), improved
    in turn by the higher-order orthogonal iteration.

    Args:
        kernel: floats[inputs, space..., outputs].
        ranks: the channels after the first and after the second kernel.
        hessian: as in `channel_factors`; what counts of it is how the channels at one position go together.
        sweeps: of the iteration.

    Returns:
        The three kernels.

    Raises:
        ValueError: a rank is out of range, or the Hessian does not fit.
    """
    first, second = ranks
    inputs, outputs = kernel.shape[0], kernel.shape[-1]
    wide = kernel.astype(jnp.float32).reshape(inputs, -1, outputs)
    seen = whitened(wide.reshape(inputs, -1), position_hessian(hessian, kernel.shape)).reshape(wide.shape)
    product = lax.stop_gradient(seen)
    for _ in range(1 + sweeps):
        after = right_basis(product.reshape(-1, outputs), second)  # [second, outputs]
        fewer = _times(seen, after).reshape(inputs, -1)
        within = right_basis(fewer, first)  # [first, space · second]
        before = jnp.linalg.qr(_product(fewer, within.T))[0]  # [inputs, first]
        product = _product(before, _product(before.T, seen.reshape(inputs, -1))).reshape(seen.shape)
    left = _product(_times(wide, after).reshape(inputs, -1), within.T)
    size = lax.stop_gradient(jnp.linalg.norm(left))
    scale = jnp.where(size > 0, jnp.cbrt(size / math.sqrt(first)), 1.0)  # as large as the others
    core = within.reshape(first, *kernel.shape[1:-1], second) * scale
    made = (left / scale**2, core, after * scale)
    return Tucker(*(array.astype(kernel.dtype) for array in made))


def kernel_spectra(kernel: jax.Array, hessian: jax.Array | None, form: str) -> tuple[jax.Array, ...]:
    """The singular values that each form cuts off: one row of them, and of Tucker one of each channel axis.

    Args:
        kernel: floats[inputs, space..., outputs].
        hessian: as in `channel_factors`.
        form: `channel`, `spatial` or `tucker`.
    """
    if form == "channel":
        return (singular_values(_flat(kernel), hessian),)
    if form == "spatial":
        columns = kernel.reshape(math.prod(kernel.shape[:2]), -1)
        return (singular_values(columns, column_hessian(hessian, kernel.shape)),)
    seen = whitened(kernel.reshape(kernel.shape[0], -1), position_hessian(hessian, kernel.shape))
    return singular_values(seen), singular_values(seen.reshape(-1, kernel.shape[-1]))


def column_hessian(hessian: jax.Array | None, shape: tuple[int, ...]) -> jax.Array | None:
    """The second moments of columns of a patch, over all of them: f32[inputs · height, inputs · height]."""
    if hessian is None:
        return None
    inputs, height, others = shape[0], shape[1], math.prod(shape[2:-1])
    parts = hessian.reshape(inputs * height, others, inputs * height, others)
    return jnp.einsum("aibi->ab", parts)


def position_hessian(hessian: jax.Array | None, shape: tuple[int, ...]) -> jax.Array | None:
    """The second moments of the channels at one position, over all positions: f32[inputs, inputs]."""
    if hessian is None:
        return None
    space = math.prod(shape[1:-1])
    return jnp.einsum("aibi->ab", hessian.reshape(shape[0], space, shape[0], space))


def _flat(kernel: jax.Array) -> jax.Array:
    return kernel.reshape(-1, kernel.shape[-1])


def _times(kernel: jax.Array, basis: jax.Array) -> jax.Array:
    return _product(kernel, basis.T)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)
