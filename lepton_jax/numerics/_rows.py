"""Rows of a weight changed one after another, each making up for what those before it did to the output.

With Σ x xᵀ = H the squared output error of a change Δ of a weight W[K, N] is tr(Δᵀ H Δ). GPTQ (Frantar et
al., 2022) and SparseGPT (Frantar & Alistarh, 2023) round or prune the inputs, rows of W, one after another,
and factor the inverse of H for what the later rows have to make up for. Here H itself is factored, H = R Rᵀ
with R upper triangular, and row i is changed after adding Σ_{j<i} R[j, i] / R[i, i] · Δ_j: the same numbers
(Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm", 2025), without an
inverse that amplifies the rounding of badly conditioned Hessians.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._matrix import MatrixLayout
from lepton_jax.numerics.quantize import Scheme, expand

Change: TypeAlias = Callable[..., jax.Array]
"""What becomes of a row: of its numbers as they should be, f32[N], and what else is known of it."""

State: TypeAlias = tuple[jax.Array, jax.Array]
"""The errors f32[K, N], w less the rows as they are now, and the rows."""

_Attempt: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

_ATTEMPTS = 12  # the damping grows tenfold each time

_SMALL = 2**18
"""Errors of so many elements stay in the cache: one loop over rows is as fast as blocks, compiled sooner."""


def as_hessians(hessian: jax.Array, shape: tuple[int, ...], layout: MatrixLayout) -> jax.Array:
    """The Hessians of a weight of this shape, one for each of its matrices: f32[batch, K, K].

    Raises:
        ValueError: they do not fit the weight.
    """
    batch, inputs, _ = layout.shape(shape)
    if hessian.shape[-2:] != (inputs, inputs) or hessian.size != batch * inputs * inputs:
        needed = (*((batch,) if batch > 1 else ()), inputs, inputs)
        raise ValueError(f"the Hessian has shape {hessian.shape}, the weight {shape} needs {needed}")
    return hessian.astype(jnp.float32).reshape(batch, inputs, inputs)


def spread(array: jax.Array, scheme: Scheme, shape: tuple[int, ...]) -> jax.Array:
    """Scales or zeros of a weight of this shape, one for each element: float32."""
    return jnp.broadcast_to(expand(array.astype(jnp.float32), scheme, shape), shape)


def one_scale_each(scheme: Scheme) -> Scheme:
    """The scheme of elements that have a scale of their own, as `spread` gives them."""
    form = replace(scheme.fmt, block=None)
    return replace(scheme, format=form, shared=(), group=None, group_axis=None)


def normalised(hessian: jax.Array) -> jax.Array:
    """Symmetric, of mean diagonal one; inputs that were always zero apart from the others."""
    hessian = (hessian + hessian.T) / 2
    diagonal = jnp.diagonal(hessian)
    alive = diagonal > 0
    mean = jnp.sum(jnp.where(alive, diagonal, 0.0)) / jnp.maximum(jnp.sum(alive), 1)
    hessian = hessian / jnp.where(mean > 0, mean, 1.0)
    # Not finite: left in, so that factoring fails.
    keep = (alive[:, None] & alive[None]) | ~jnp.isfinite(hessian)
    return jnp.where(keep, hessian, jnp.diag(jnp.where(alive, 0.0, 1.0)))


def factored(hessian: jax.Array, damping: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """R, upper triangular with R Rᵀ = hessian + damping; the damping; whether any did (otherwise R = 1)."""
    # What loops carry is made of the Hessian: in a shard_map it varies along the same axes of the mesh.
    unit = jnp.zeros_like(hessian) + jnp.eye(len(hessian), dtype=hessian.dtype)

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
    start = (tries, jnp.full_like(hessian[0, 0], damping, jnp.float32), unit, jnp.zeros_like(tries, bool))
    _, used, lower, ok = lax.while_loop(again, attempt, start)
    return jnp.where(ok, lower[::-1, ::-1], unit), used, ok


def from_earlier(factor: jax.Array) -> jax.Array:
    """How much of the change of each row those after it make up for: f32[K, K], by its `factored`."""
    weights: jax.Array = factor / jnp.diagonal(factor) * (1 - jnp.eye(len(factor), dtype=factor.dtype))
    return weights


def from_all(hessian: jax.Array, damping: jax.Array, ok: jax.Array) -> jax.Array:
    """How much of the change of each row every other one makes up for, given all others: f32[K, K]."""
    off_diagonal = 1 - jnp.eye(len(hessian), dtype=hessian.dtype)
    weights: jax.Array = hessian / (jnp.diagonal(hessian) + damping) * off_diagonal
    return jnp.where(ok, weights, 0.0)


def is_small(inputs: int, outputs: int) -> bool:
    """Whether rows of a weight need no blocks."""
    return inputs * outputs <= _SMALL


def swept(
    count: int, weights: jax.Array, state: State, arrays: tuple[jax.Array, ...], change: Change, block: int
) -> State:
    """`row_by_row` so many times more, on the errors and rows that it returned."""

    def once(_: int, state: State) -> State:
        return row_by_row(weights, state[0], arrays, change, block)

    return lax.fori_loop(0, count, once, state) if count else state


def on_each(fun: Callable[..., Any], *arrays: jax.Array | None) -> Any:
    """A function of matrices on stacks of these; a stack of one is not worth a batch."""
    if all(array is None or len(array) == 1 for array in arrays):
        one = fun(*(None if array is None else array[0] for array in arrays))
        return jax.tree.map(lambda found: found[None], one)
    return jax.vmap(fun)(*arrays)


def row_by_row(
    weights: jax.Array, errors: jax.Array, arrays: tuple[jax.Array, ...], change: Change, block: int
) -> tuple[jax.Array, jax.Array]:
    """Change row after row of w, each after adding the errors of the others; returns the errors and the rows.

    Args:
        weights: f32[K, K], how much of the error of each row is added to each column's row; zero diagonal.
        errors: f32[K, N], w less the rows as they are now (zero for those not yet changed).
        arrays: w, and what else `change` is handed of each row, all [K, N].
        change: a row as it should be, and the rows of the other arrays, to the row as it will be.
        block: rows whose corrections by the others are computed by one product, unless the weight is small.
    """
    inputs, outputs = errors.shape
    if is_small(inputs, outputs):
        return rows_of_block(weights, errors, jnp.zeros_like(errors), arrays, change)
    count = -(-inputs // block)
    rest = count * block - inputs
    columns = jnp.pad(weights, ((0, rest), (0, rest))).reshape(-1, count, block).swapaxes(0, 1)
    split = [jnp.pad(a, ((0, rest), (0, 0)), constant_values=1).reshape(count, block, -1) for a in arrays]

    def one_block(errors: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        start, column, *rows = part
        square = lax.dynamic_slice_in_dim(column, start, block)
        near = lax.dynamic_slice_in_dim(errors, start, block)
        others = lax.dynamic_update_slice_in_dim(errors, jnp.zeros_like(near), start, 0)
        far = jnp.matmul(column.T, others, precision=lax.Precision.HIGHEST)
        near, values = rows_of_block(square, near, far, tuple(rows), change)
        return lax.dynamic_update_slice_in_dim(errors, near, start, 0), values

    parts = (jnp.arange(count) * block, columns, *split)
    errors, values = lax.scan(one_block, jnp.pad(errors, ((0, rest), (0, 0))), parts)
    return errors[:inputs], values.reshape(-1, outputs)[:inputs]


def rows_of_block(
    square: jax.Array, near: jax.Array, far: jax.Array, rows: tuple[jax.Array, ...], change: Change
) -> tuple[jax.Array, jax.Array]:
    """The same for the rows of one block: the errors of its rows, and the rows.

    Args:
        square: f32[B, B], of the weights those among the block.
        near: f32[B, N], the errors of its rows so far.
        far: f32[B, N], what the errors of all other rows add to its rows.
        rows: w, and what else `change` is handed, each [B, N].
        change: as in `row_by_row`.
    """

    def one_row(near: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        index, by, correction, original, *others = row
        correction = correction + jnp.matmul(by, near, precision=lax.Precision.HIGHEST)
        value = change(original + correction, *others)
        return lax.dynamic_update_index_in_dim(near, original - value, index, 0), value

    return lax.scan(one_row, near, (jnp.arange(len(near)), square.T, far, *rows))
