"""Wanda: weights ranked by their size times that of their inputs, for each output on its own.

Sun, Liu, Bair and Kolter, "A Simple and Effective Pruning Approach for Large Language Models"
(arXiv:2306.11695).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lepton_jax.numerics.masks import Pattern, Unstructured


def wanda(
    w: jax.Array,
    norm: jax.Array,
    sparsity: float | jax.Array = 0.5,
    *,
    pattern: Pattern = Unstructured(),  # noqa: B008 (frozen)
) -> jax.Array:
    """Which weights of a matrix stay.

    Args:
        w: floats [K, N] of inputs and outputs; of other weights see `MatrixLayout.to_matrix`.
        norm: f32[K], ‖x‖₂ of each input over the calibration inputs: √diag of a Hessian, or `Moments`' root
            of mean squares. Its scale does not matter.
        sparsity: the share of weights that goes, 0 to 1, of each output; may be traced.
        pattern: what comes and goes together, see `masks`. Single weights are ranked among those of their
            output, everything else among all.

    Returns:
        bool[K, N].

    Raises:
        ValueError: the norm does not fit.

    Example:
        >>> w = jnp.array([[1.0, 5.0], [2.0, 1.0], [3.0, 2.0], [4.0, 4.0]])
        >>> wanda(w, jnp.array([9.0, 1.0, 1.0, 1.0]), 0.5)[:, 0].tolist()
        [True, False, False, True]
    """
    if w.ndim != 2 or norm.shape != w.shape[:1]:
        raise ValueError(f"a weight [K, N] has norms of inputs [K], not {w.shape} and {norm.shape}")
    scores = jnp.abs(w.astype(jnp.float32)) * norm.astype(jnp.float32)[:, None]
    if not isinstance(pattern, Unstructured):
        return pattern.mask(scores, sparsity)
    return jax.vmap(lambda each: pattern.mask(each, sparsity), 1, 1)(scores)
