"""GPTQ: rounding a weight so that its output, not the weight itself, changes least.

Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022). Inputs are rounded one after another; the error that the inputs rounded so far make in
the output, seen through the Hessian Σ x xᵀ, is made up for by those still to come. See `_rows`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.numerics._matrix import MatrixLayout
from lepton_jax.numerics._rows import (
    Change,
    as_hessians,
    factored,
    from_all,
    from_earlier,
    normalised,
    on_each,
    one_scale_each,
    row_by_row,
    spread,
    swept,
)
from lepton_jax.numerics.quantize import Quantized, Scheme, encode, fake_quantize, scale_of


class GPTQ(NamedTuple):
    """A weight rounded by GPTQ.

    Attributes:
        quantized: codes, scale and zero, exactly as `quantize` gives them.
        damping: f32[groups], the part of the Hessian's mean diagonal that was added to it; more than asked
            for where the Hessian was too far from positive definite.
        rounded: bool[groups], where GPTQ was impossible (the Hessian is not finite, or no damping helped),
            and the weight was rounded to nearest.
    """

    quantized: Quantized
    damping: jax.Array
    rounded: jax.Array


@partial(
    jax.jit, static_argnames=("scheme", "layout", "act_order", "damping", "sweeps", "block", "zeros_stay")
)
def gptq(
    w: jax.Array,
    hessian: jax.Array,
    scheme: Scheme,
    *,
    layout: MatrixLayout = MatrixLayout(),  # noqa: B008 (frozen)
    act_order: bool = True,
    damping: float = 0.01,
    sweeps: int = 0,
    block: int = 128,
    zeros_stay: bool = False,
    scale: jax.Array | None = None,
    zero: jax.Array | None = None,
) -> GPTQ:
    """Codes of a weight under a scheme, chosen for the least squared error of the output.

    Scales and zeros are those that the scheme finds for `w` (static groups, in GPTQ's words), so codes stay
    in the order of the weight whatever order they were made in, and no gather is needed when it is used.
    Inputs that never were different from zero are rounded to nearest. For the stacked weights of a scan use
    `jax.vmap`.

    Args:
        w: floats, of any shape.
        hessian: Σ x xᵀ, f32[K, K], or one for each batch or group, f32[batch..., K, K]: `Hessian.matrix` (of
            a weight used in several places: the sum). Its scale does not matter.
        scheme: how to quantise; any format, groups and blocks along any axes.
        layout: which axes of `w` are contracted, are batches, or split into groups.
        act_order: round the inputs with the largest second moment first.
        damping: part of the mean diagonal that is added to the diagonal. Multiplied by ten until the Hessian
            can be factored.
        sweeps: afterwards, so many times, round each input again given all others (Behdin et al.,
            "QuantEase", 2023). Each takes as long as GPTQ itself and makes the error smaller.
        block: inputs whose corrections are computed by one product, in weights that are not small.
        zeros_stay: what is exactly zero, as in pruned weights, makes up for nothing and stays zero.
        scale: of `w`, if not what the scheme finds (`awq.clipped_scale`, `hqq`).
        zero: likewise.

    Returns:
        A `GPTQ` with `quantized`, and what became of the damping.

    Raises:
        ValueError: if the Hessian does not fit the weight, or a setting is out of range.

    Example:
        >>> w = jnp.linspace(-1.0, 1.0, 24).reshape(8, 3)
        >>> codes, scale, zero = gptq(w, jnp.eye(8), Scheme("int4", shared=(0,), group=4)).quantized
        >>> codes.dtype.name, codes.shape, scale.shape
        ('int8', (8, 3), (2, 3))
    """
    hessian = as_hessians(hessian, w.shape, layout)
    batch, inputs, _ = hessian.shape
    if not damping > 0 or block < 1 or sweeps < 0:
        given = f"damping={damping}, block={block}, sweeps={sweeps}"
        raise ValueError(f"damping and block must be positive and sweeps not negative: {given}")
    if scale is None:
        scale, zero = scale_of(w, scheme)
    if not w.size:
        whole = jnp.full(batch, damping, jnp.float32)
        return GPTQ(Quantized(encode(w, scale, zero, scheme), scale, zero), whole, jnp.zeros(batch, bool))
    steps = [spread(array, scheme, w.shape) for array in (scale, zero) if array is not None]
    matrices = [layout.to_matrix(array) for array in steps]
    matrix = layout.to_matrix(w.astype(jnp.float32))
    single = one_scale_each(scheme)

    def value(row: jax.Array, original: jax.Array, *step: jax.Array) -> jax.Array:
        return fake_quantize(jnp.where(original == 0, 0.0, row) if zeros_stay else row, single, *step)

    solve = partial(
        _solve, value=value, act_order=act_order, damping=damping, sweeps=sweeps, block=min(block, inputs)
    )
    values, used, rounded = on_each(solve, matrix, hessian, *matrices)
    codes = encode(layout.from_matrix(values, w.shape), scale, zero, scheme)
    return GPTQ(Quantized(codes, scale, zero), used, rounded)


def _solve(
    w: jax.Array,
    hessian: jax.Array,
    *steps: jax.Array,
    value: Change,
    act_order: bool,
    damping: float,
    sweeps: int,
    block: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the codes of w[K, N], with its scales (and zeros), shall stand for; damping; if merely rounded."""
    hessian = normalised(hessian)
    order = jnp.argsort(-jnp.diagonal(hessian)) if act_order else jnp.arange(len(w))
    hessian = hessian[order][:, order]
    factor, used, ok = factored(hessian, damping)
    arrays = tuple(array[order] for array in (w, w, *steps))
    state = row_by_row(from_earlier(factor), jnp.zeros_like(w), arrays, value, block)
    _, values = swept(sweeps, from_all(hessian, used, ok), state, arrays, value, block)
    values = jnp.zeros_like(values).at[order].set(values, unique_indices=True)
    return values, used, ~ok
