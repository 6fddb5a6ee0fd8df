"""Bias correction: giving an output back the mean that quantisation took from it.

Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction" (2019), section 4.2:
rounding a weight shifts the mean of the output by (ŵ − w)ᵀ E[x]; the opposite is added to the bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._matrix import MatrixLayout
from lepton_jax.numerics.hessian import conv_layout


def bias_correction(
    w: jax.Array,
    rounded: jax.Array,
    mean: jax.Array,
    *,
    rounded_mean: jax.Array | None = None,
    layout: MatrixLayout = MatrixLayout(),  # noqa: B008 (frozen)
) -> jax.Array:
    """What to add to the output of a dot so that its mean is that before quantisation.

    Args:
        w: the weight, floats.
        rounded: what its codes stand for, of the same shape.
        mean: E[x] of each contracted input, of the shape of the batch (or groups) and contracted axes,
            flattened or not.
        rounded_mean: E[x̂] where the input is quantised as well; the same as `mean` if None.
        layout: which axes of the weight are contracted, as for `gptq`.

    Returns:
        f32, of the shape of the batch and output axes of the weight, in their order.

    Raises:
        ValueError: if the shapes do not fit.
    """
    batch, inputs, _ = layout.shape(w.shape)
    means = mean.shape if rounded_mean is None else rounded_mean.shape
    if w.shape != rounded.shape or mean.size != batch * inputs or means != mean.shape:
        shapes = f"{w.shape}, {rounded.shape}, {mean.shape}, {means}"
        raise ValueError(f"weights of one shape and means of {batch} × {inputs} inputs are needed: {shapes}")
    kept = (*layout.batch, *layout.outputs(w.ndim))
    shape = tuple(w.shape[axis] for axis in kept)
    lost = _expected(w.astype(jnp.float32) - rounded.astype(jnp.float32), mean, layout)
    if rounded_mean is not None:
        shift = mean.astype(jnp.float32) - rounded_mean.astype(jnp.float32)
        lost = lost + _expected(rounded, shift, layout)
    return lost.reshape(shape)


def conv_bias_correction(
    w: jax.Array, rounded: jax.Array, mean: jax.Array, rhs_spec: Sequence[int], groups: int = 1
) -> jax.Array:
    """What to add to the output of a convolution, f32[output channels].

    The mean of an input channel counts for every kernel position; what padding changes at the edges is not
    accounted for.

    Args:
        w: the kernel, floats.
        rounded: what its codes stand for.
        mean: E[x] of each input channel, f32[channels].
        rhs_spec: the kernel's axes of outputs, inputs and space.
        groups: `feature_group_count`.

    Raises:
        ValueError: if the shapes do not fit.
    """
    channels = w.shape[rhs_spec[1]]
    if mean.shape != (channels * groups,):
        raise ValueError(f"{channels * groups} input channels need as many means, not shape {mean.shape}")
    positions = w.size // max(channels * w.shape[rhs_spec[0]], 1)
    spread = jnp.broadcast_to(mean.reshape(groups, channels, 1), (groups, channels, positions))
    return bias_correction(w, rounded, spread, layout=conv_layout(rhs_spec, groups))


def _expected(w: jax.Array, mean: jax.Array, layout: MatrixLayout) -> jax.Array:
    matrix = layout.to_matrix(w.astype(jnp.float32))
    means = mean.astype(jnp.float32).reshape(matrix.shape[:2])
    return jnp.einsum("bk,bkn->bn", means, matrix, precision=lax.Precision.HIGHEST)
