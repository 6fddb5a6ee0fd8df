"""GPTQ: rounding a weight so that its output, not the weight itself, changes least.

Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022). Inputs are rounded one after another; the error that the inputs rounded so far make in
the output, seen through the Hessian Σ x xᵀ, is made up for by those still to come.

GPTQ factors the inverse of the Hessian. Here the Hessian itself is factored, H = R Rᵀ with R upper
triangular, and row i is rounded after adding Σ_{j<i} R[j, i] / R[i, i] · (w_j − q_j): the same numbers (Chen
et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm", 2025), without an inverse
that amplifies the rounding of badly conditioned Hessians.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._matrix import MatrixLayout
from lepton_jax.numerics.quantize import Quantized, Scheme, encode, expand, fake_quantize, scale_of

_Attempt: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

_ATTEMPTS = 12  # the damping grows tenfold each time


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


@partial(jax.jit, static_argnames=("scheme", "layout", "act_order", "damping", "sweeps", "block"))
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
        block: inputs whose corrections are computed by one product.
        scale: of `w`, if not what the scheme finds (`awq.clipped_scale`, `hqq`).
        zero: likewise.

    Returns:
        A `GPTQ` with `quantized`, and what became of the damping.

    Raises:
        ValueError: if the Hessian does not fit the weight, or a setting is out of range.

    Example:
        >>> hessian = update_hessian(empty_hessian(64), x)
        >>> codes, scale, zero = gptq(w, hessian.matrix, Scheme("int4", shared=(0,), group=32)).quantized
    """
    batch, inputs, _ = layout.shape(w.shape)
    if hessian.shape[-2:] != (inputs, inputs) or hessian.size != batch * inputs * inputs:
        needed = (*((batch,) if batch > 1 else ()), inputs, inputs)
        raise ValueError(f"the Hessian has shape {hessian.shape}, the weight {w.shape} needs {needed}")
    if not damping > 0 or block < 1 or sweeps < 0:
        given = f"damping={damping}, block={block}, sweeps={sweeps}"
        raise ValueError(f"damping and block must be positive and sweeps not negative: {given}")
    if scale is None:
        scale, zero = scale_of(w, scheme)
    if not w.size:
        whole = jnp.full(batch, damping, jnp.float32)
        return GPTQ(Quantized(encode(w, scale, zero, scheme), scale, zero), whole, jnp.zeros(batch, bool))
    single = replace(scheme, format=replace(scheme.fmt, block=None), shared=(), group=None, group_axis=None)
    solve = partial(
        _solve, scheme=single, act_order=act_order, damping=damping, sweeps=sweeps, block=min(block, inputs)
    )
    steps = [_spread(array, scheme, w.shape) for array in (scale, zero) if array is not None]
    matrices = [layout.to_matrix(array) for array in steps]
    matrix = layout.to_matrix(w.astype(jnp.float32))
    hessian = hessian.astype(jnp.float32).reshape(batch, inputs, inputs)
    if batch == 1:
        one = solve(matrix[0], hessian[0], [array[0] for array in matrices])
        values, used, rounded = (array[None] for array in one)
    else:
        values, used, rounded = jax.vmap(solve)(matrix, hessian, matrices)
    codes = encode(layout.from_matrix(values, w.shape), scale, zero, scheme)
    return GPTQ(Quantized(codes, scale, zero), used, rounded)


def _spread(array: jax.Array, scheme: Scheme, shape: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(expand(array.astype(jnp.float32), scheme, shape), shape)


def _solve(
    w: jax.Array,
    hessian: jax.Array,
    steps: list[jax.Array],
    *,
    scheme: Scheme,
    act_order: bool,
    damping: float,
    sweeps: int,
    block: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the codes of w[K, N], with its scales (and zeros), shall stand for; damping; if merely rounded."""
    hessian = _prepared(hessian)
    order = jnp.argsort(-jnp.diagonal(hessian)) if act_order else jnp.arange(len(w))
    hessian = hessian[order][:, order]
    factor, used, ok = _factor(hessian, damping)
    arrays = tuple(array[order] for array in (w, *steps))
    off_diagonal = 1 - jnp.eye(len(w), dtype=jnp.float32)
    weights = factor / jnp.diagonal(factor) * off_diagonal
    errors, values = _pass(weights, jnp.zeros_like(w), arrays, scheme, block)
    if sweeps:
        weights = jnp.where(ok, hessian / (jnp.diagonal(hessian) + used) * off_diagonal, 0.0)
        for _ in range(sweeps):
            errors, values = _pass(weights, errors, arrays, scheme, block)
    values = jnp.zeros_like(values).at[order].set(values, unique_indices=True)
    return values, used, ~ok


def _prepared(hessian: jax.Array) -> jax.Array:
    """Symmetric, of mean diagonal one; inputs that were always zero apart from the others."""
    hessian = (hessian + hessian.T) / 2
    diagonal = jnp.diagonal(hessian)
    alive = diagonal > 0
    mean = jnp.sum(jnp.where(alive, diagonal, 0.0)) / jnp.maximum(jnp.sum(alive), 1)
    hessian = hessian / jnp.where(mean > 0, mean, 1.0)
    # Not finite: left in, so that factoring fails.
    keep = (alive[:, None] & alive[None]) | ~jnp.isfinite(hessian)
    return jnp.where(keep, hessian, jnp.diag(jnp.where(alive, 0.0, 1.0)))


def _factor(hessian: jax.Array, damping: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """R, upper triangular with R Rᵀ = hessian + damping; the damping; whether any did (otherwise R = 1)."""
    unit = jnp.eye(len(hessian), dtype=hessian.dtype)

    def attempt(state: _Attempt) -> _Attempt:
        tries = state[0]
        used = damping * 10.0 ** tries.astype(jnp.float32)
        lower = lax.linalg.cholesky((hessian + used * unit)[::-1, ::-1], symmetrize_input=False)
        # Without rounding no pivot of a positive semidefinite matrix is less than the damping.
        ok = jnp.isfinite(lower).all() & (jnp.min(jnp.diagonal(lower)) ** 2 > used / 4)
        return tries + 1, used, lower, ok

    def again(state: _Attempt) -> jax.Array:
        return ~state[3] & (state[0] < _ATTEMPTS)

    tries = jnp.where(jnp.isfinite(hessian).all(), 0, _ATTEMPTS)
    start = (tries, jnp.asarray(damping, jnp.float32), unit, jnp.zeros((), bool))
    _, used, lower, ok = lax.while_loop(again, attempt, start)
    return jnp.where(ok, lower[::-1, ::-1], unit), used, ok


def _pass(
    weights: jax.Array, errors: jax.Array, arrays: tuple[jax.Array, ...], scheme: Scheme, block: int
) -> tuple[jax.Array, jax.Array]:
    """Round row after row of w, each after adding the errors of the others; returns the errors and the rows.

    Args:
        weights: f32[K, K], how much of the error of each row is added to each column's row; zero diagonal.
        errors: f32[K, N], w less the rows as they are now (zero for those not yet rounded).
        arrays: w, its scales and perhaps zeros, all f32[K, N].
        scheme: how, with one scale an element.
        block: rows whose corrections by the others are computed by one product.
    """
    inputs, outputs = errors.shape
    count = -(-inputs // block)
    rest = count * block - inputs
    columns = jnp.pad(weights, ((0, rest), (0, rest))).reshape(-1, count, block).swapaxes(0, 1)
    split = [jnp.pad(a, ((0, rest), (0, 0)), constant_values=1).reshape(count, block, -1) for a in arrays]

    def one_block(errors: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        start, column, w, *steps = part
        square = lax.dynamic_slice_in_dim(column, start, block)
        near = lax.dynamic_slice_in_dim(errors, start, block)
        others = lax.dynamic_update_slice_in_dim(errors, jnp.zeros_like(near), start, 0)
        far = jnp.matmul(column.T, others, precision=lax.Precision.HIGHEST)

        def one_row(near: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            index, by, original, correction, *step = row
            correction = correction + jnp.matmul(by, near, precision=lax.Precision.HIGHEST)
            value = fake_quantize(original + correction, scheme, *step)
            return lax.dynamic_update_index_in_dim(near, original - value, index, 0), value

        near, values = lax.scan(one_row, near, (jnp.arange(block), square.T, w, far, *steps))
        return lax.dynamic_update_slice_in_dim(errors, near, start, 0), values

    parts = (jnp.arange(count) * block, columns, *split)
    errors, values = lax.scan(one_block, jnp.pad(errors, ((0, rest), (0, 0))), parts)
    return errors[:inputs], values.reshape(-1, outputs)[:inputs]
