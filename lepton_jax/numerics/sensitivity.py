"""How much damage a changed weight does: expected from second moments, and measured.

The second-order estimate is that of Hassibi and Stork ("Optimal Brain Surgeon", 1992) and of Dong et al.
("HAWQ-V2", 2019): with the gradient near zero, a change Δ of a weight changes the loss by ½ tr(Δᵀ H Δ).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._matrix import MatrixLayout
from lepton_jax.numerics.errors import relative_error, sqnr


class OutputError(NamedTuple):
    """How far a changed output is from the original, each f32[].

    Attributes:
        mean_square: mean of the squared differences.
        relative: the norm of the difference by the norm of the original.
        sqnr: signal to quantisation noise ratio in decibels.
    """

    mean_square: jax.Array
    relative: jax.Array
    sqnr: jax.Array


def damage(
    change: jax.Array,
    moment: jax.Array,
    *,
    layout: MatrixLayout = MatrixLayout(),  # noqa: B008 (frozen)
) -> jax.Array:
    """½ tr(Δᵀ H Δ), f32[]: what a change of a weight is expected to cost.

    With H = Σ x xᵀ (`Hessian.matrix`) this is half the squared error of the output over the calibration
    inputs; divided by their count, of one input. With the Hessian of a loss by the outputs' gradients
    (Fisher) it is the change of the loss.

    Args:
        change: ŵ − w, of any shape.
        moment: f32[K, K] or f32[batch..., K, K] as for `gptq`; or its diagonal, f32[batch or 1, K], which
            costs much less and leaves out that inputs are correlated.
        layout: as for `gptq`.

    Raises:
        ValueError: if the moments do not fit the weight.
    """
    delta = layout.to_matrix(change.astype(jnp.float32))
    batch, inputs, _ = delta.shape
    if moment.shape[-2:] == (inputs, inputs) and moment.size == batch * inputs * inputs:
        seen = jnp.matmul(moment.reshape(batch, inputs, inputs), delta, precision=lax.Precision.HIGHEST)
        return jnp.vdot(delta, seen) / 2
    if moment.shape[-1] != inputs or moment.size not in (inputs, batch * inputs):
        raise ValueError(f"moments of shape {moment.shape} do not fit a weight of {batch} × {inputs} inputs")
    return jnp.sum(jnp.square(delta) * moment.reshape(-1, inputs, 1)) / 2


def output_error(original: jax.Array, changed: jax.Array) -> OutputError:
    """The measured error of an output, or of anything else."""
    difference = changed.astype(jnp.float32) - original.astype(jnp.float32)
    mean = jnp.mean(jnp.square(difference)) if difference.size else jnp.zeros(())
    return OutputError(mean, relative_error(original, changed), sqnr(original, changed))
