"""Second moments of what a weight reads: the Hessian Σ x xᵀ of its squared output error, by layer.

For a weight W[K, N] that is changed by Δ, the squared error of x @ W summed over all inputs is tr(Δᵀ H Δ)
with H = Σ x xᵀ, as Hassibi and Stork ("Optimal Brain Surgeon", 1992) and Frantar et al. (GPTQ, 2022) use
it. The state is small (K × K), adds up over batches, devices and places where one weight is used, and works
under scan and vmap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.numerics._matrix import MatrixLayout

__all__ = [
    "Hessian",
    "MatrixLayout",
    "conv_layout",
    "empty_hessian",
    "merge_hessians",
    "scaled_hessian",
    "update_conv_hessian",
    "update_hessian",
]

_CHUNK = 2**25  # elements of a convolution's patches that are made at once


class Hessian(NamedTuple):
    """Σ x xᵀ over the inputs seen so far.

    Attributes:
        matrix: f32[..., K, K]. Across devices: psum.
        rows: f32[...], how many inputs x (rows, positions) are in it. Across devices: psum.
        nonfinite: f32[...], how many inputs were left out since they hold NaN or infinity. Across devices:
            psum.
    """

    matrix: jax.Array
    rows: jax.Array
    nonfinite: jax.Array


def empty_hessian(size: int, batch: tuple[int, ...] = ()) -> Hessian:
    """The state before any input; `size` is K, `batch` the shape of batches or groups."""
    return Hessian(jnp.zeros((*batch, size, size), jnp.float32), jnp.zeros(batch), jnp.zeros(batch))


def update_hessian(
    state: Hessian,
    x: jax.Array,
    *,
    axes: Sequence[int] = (-1,),
    batch: Sequence[int] = (),
    mask: jax.Array | None = None,
) -> Hessian:
    """The state with the inputs of a dot added.

    Args:
        state: as from `empty_hessian`; of `batch` shape, or without batch for all of them together.
        x: floats, what is multiplied with the weight.
        axes: the contracted axes of x, in the order of those of the weight.
        batch: its batch axes.
        mask: broadcastable to x without its contracted axes, in their order; false rows are left out
            (padding).

    Raises:
        ValueError: if x does not fit the state.
    """
    contracted = [axis % x.ndim for axis in axes]
    batched = [axis % x.ndim for axis in batch]
    free = [axis for axis in range(x.ndim) if axis not in contracted and axis not in batched]
    size = math.prod(x.shape[axis] for axis in contracted)
    lead = tuple(x.shape[axis] for axis in batched)
    rows = x.transpose(*batched, *free, *contracted).reshape(*lead, -1, size)
    if mask is None:
        return _add(state, rows, jnp.ones(rows.shape[:-1], bool))
    kept = [axis for axis in range(x.ndim) if axis not in contracted]
    full = jnp.broadcast_to(mask, [x.shape[axis] for axis in kept])
    order = [kept.index(axis) for axis in (*batched, *free)]
    return _add(state, rows, full.transpose(order).reshape(rows.shape[:-1]).astype(bool))


def conv_layout(rhs_spec: Sequence[int], groups: int = 1) -> MatrixLayout:
    """How a convolution's kernel becomes matrices whose rows are ordered as those of its Hessian.

    Args:
        rhs_spec: `ConvDimensionNumbers.rhs_spec`: the kernel's axes of outputs, inputs, and space.
        groups: `feature_group_count`.
    """
    return MatrixLayout(tuple(rhs_spec[1:]), groups=groups)


def update_conv_hessian(
    state: Hessian,
    x: jax.Array,
    kernel_shape: Sequence[int],
    *,
    dimension_numbers: Any,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> Hessian:
    """The state with the inputs of a convolution added: each output position's patch is a row.

    Args:
        state: `empty_hessian(K)` with K = inputs of a group × kernel positions; with groups, of batch
            `(groups,)`.
        x: the input.
        kernel_shape: the shape of the kernel.
        dimension_numbers: as for `lax.conv_general_dilated`, or `lax.ConvDimensionNumbers`.
        window_strides: as for `lax.conv_general_dilated`.
        padding: as there.
        lhs_dilation: as there.
        rhs_dilation: as there.
        groups: `feature_group_count`.

    Raises:
        ValueError: if x does not fit the state.
    """
    dims = lax.conv_dimension_numbers(x.shape, tuple(kernel_shape), dimension_numbers)
    x = x.transpose(dims.lhs_spec).astype(jnp.float32)  # examples, channels, space
    space = tuple(kernel_shape[axis] for axis in dims.rhs_spec[2:])
    patches = partial(
        _patches,
        space=space,
        strides=tuple(window_strides),
        padding=padding,
        spread=tuple(lhs_dilation or (1,) * len(space)),
        apart=tuple(rhs_dilation or (1,) * len(space)),
    )

    def added(total: Hessian, part: jax.Array) -> Hessian:
        made = patches(part).reshape(len(part), groups, x.shape[1] // groups * math.prod(space), -1)
        rows = made.transpose(1, 0, 3, 2).reshape(groups, -1, made.shape[2])
        return _add(total, rows, jnp.ones(rows.shape[:-1], bool))

    elements = math.prod(jax.eval_shape(patches, x).shape)
    parts = min(len(x), -(-elements // _CHUNK))
    if parts <= 1:
        return added(state, x)
    size = len(x) // parts
    whole = x[: parts * size].reshape(parts, size, *x.shape[1:])
    state, _ = lax.scan(lambda total, part: (added(total, part), None), state, whole)
    return added(state, x[parts * size :]) if len(x) % parts else state


def _patches(
    x: jax.Array,
    space: tuple[int, ...],
    strides: tuple[int, ...],
    padding: str | Sequence[tuple[int, int]],
    spread: tuple[int, ...],
    apart: tuple[int, ...],
) -> jax.Array:
    """What each kernel position sees: examples, channels, kernel positions, then space."""
    reach = [(n - 1) * step + 1 for n, step in zip(space, apart, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[2:], reach, strides, padding)
    edges = [(low, high, step - 1) for (low, high), step in zip(padding, spread, strict=True)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *edges])
    sizes = [max((n - r) // s + 1, 0) for n, r, s in zip(padded.shape[2:], reach, strides, strict=True)]
    seen = []
    for position in np.ndindex(*space):
        start = [i * step for i, step in zip(position, apart, strict=True)]
        stop = [i + max((n - 1) * s + 1, 0) for i, n, s in zip(start, sizes, strides, strict=True)]
        seen.append(lax.slice(padded, (0, 0, *start), (*x.shape[:2], *stop), (1, 1, *strides)))
    return jnp.stack(seen, axis=2)


def merge_hessians(left: Hessian, right: Hessian) -> Hessian:
    """The inputs of both; the same weight used in several places adds up this way.

    Raises:
        ValueError: if their sizes differ.
    """
    if left.matrix.shape != right.matrix.shape:
        raise ValueError(f"Hessians of different weights: {left.matrix.shape} and {right.matrix.shape}")
    return Hessian(*(a + b for a, b in zip(left, right, strict=True)))


def scaled_hessian(state: Hessian, scale: jax.Array) -> Hessian:
    """The Hessian of inputs x / scale, for a weight that was multiplied by `scale`, f32[K]."""
    matrix = state.matrix / (scale[..., :, None] * scale[..., None, :])
    return Hessian(matrix, state.rows, state.nonfinite)


def _add(state: Hessian, rows: jax.Array, counted: jax.Array) -> Hessian:
    if state.rows.ndim == 0:
        rows, counted = rows.reshape(-1, rows.shape[-1]), counted.reshape(-1)
    if (*rows.shape[:-2], rows.shape[-1], rows.shape[-1]) != state.matrix.shape:
        shape = (*rows.shape[:-2], rows.shape[-1])
        raise ValueError(f"a Hessian of shape {state.matrix.shape} cannot take inputs of shape {shape}")
    rows = rows.astype(jnp.float32)
    finite = jnp.isfinite(rows).all(-1)
    used = counted & finite
    rows = jnp.where(used[..., None], rows, 0.0)
    matrix = jnp.einsum("...nk,...nl->...kl", rows, rows, precision=lax.Precision.HIGHEST)
    count, bad = jnp.sum(used, -1, dtype=jnp.float32), jnp.sum(counted & ~finite, -1, dtype=jnp.float32)
    return Hessian(state.matrix + matrix, state.rows + count, state.nonfinite + bad)
