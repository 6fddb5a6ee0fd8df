"""SmoothQuant: moving the outliers of activations into the weights that read them.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
(2022). x @ w is (x / s) @ (s · w) for any positive s, one number for each input; s = max|x|^α / max|w|^(1-α)
makes both factors easy to quantise. Division by s is folded into what makes x (a normalisation's scale, a
weight).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lepton_jax.numerics._histogram import power_of_two


def largest(array: jax.Array, axis: int) -> jax.Array:
    """max|·| of each index of one axis, f32[K]."""
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    return jnp.max(jnp.abs(array.astype(jnp.float32)), others, initial=0.0)


def smoothing(
    inputs: jax.Array,
    weights: jax.Array | Sequence[jax.Array],
    *,
    alpha: float = 0.5,
    exact: bool = False,
) -> jax.Array:
    """The scale s of each input: x is to be divided, w multiplied by it; see `scaled`.

    Inputs that are zero everywhere, in x or in w, keep scale 1.

    Args:
        inputs: max|x| of each input, f32[K], from calibration (`Moments.largest`).
        weights: max|w| of each input, f32[K] (`largest(w, axis)`), of every weight that reads x.
        alpha: how much of the difficulty moves into the weights: 0 none, 1 all.
        exact: round s to powers of two, so that scaling does not round (unless it leaves the range of the
            dtype), and the scaled float program gives the same bits.

    Returns:
        f32[K], positive and finite.

    Raises:
        ValueError: if alpha is not between 0 and 1, there is no weight, or lengths differ.

    Example:
        >>> s = smoothing(jnp.array([100.0, 1.0]), jnp.array([1.0, 1.0]))  # [10, 1]
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha}")
    every = [weights] if isinstance(weights, jax.Array) else list(weights)
    if not every or any(weight.shape != inputs.shape for weight in every):
        shapes = [weight.shape for weight in every]
        raise ValueError(f"inputs of shape {inputs.shape} need weights' maxima of that shape, not {shapes}")
    size = jnp.max(jnp.stack(every), axis=0).astype(jnp.float32)
    inputs = inputs.astype(jnp.float32)
    usable = (inputs > 0) & (size > 0) & jnp.isfinite(inputs) & jnp.isfinite(size)
    inputs, size = jnp.where(usable, inputs, 1.0), jnp.where(usable, size, 1.0)
    log = jnp.clip(alpha * jnp.log2(inputs) - (1 - alpha) * jnp.log2(size), -60.0, 60.0)
    return power_of_two(jnp.round(log).astype(jnp.int32)) if exact else jnp.exp2(log)


def scaled(array: jax.Array, scale: jax.Array, axis: int, *, inverse: bool = False) -> jax.Array:
    """An array times (or divided by, if `inverse`) a scale along one axis; the dtype is kept.

    Raises:
        ValueError: if the axis has another length.
    """
    if scale.shape != (array.shape[axis],):
        raise ValueError(f"{scale.shape} scales for axis {axis} of an array of shape {array.shape}")
    shape = [1] * array.ndim
    shape[axis] = len(scale)
    factor = scale.reshape(shape)
    return (array / factor if inverse else array * factor).astype(array.dtype)
