"""SparseGPT: pruning a weight so that its output, not the weight itself, changes least.

Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot"
(arXiv:2301.00774). Inputs are pruned one after another; the weights still to come make up for what those that
are gone did to the output, seen through the Hessian Σ x xᵀ. See `_rows` for how.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._matrix import MatrixLayout
from lepton_jax.numerics._rows import (
    State,
    as_hessians,
    factored,
    from_all,
    from_earlier,
    is_small,
    normalised,
    on_each,
    one_scale_each,
    row_by_row,
    rows_of_block,
    spread,
    swept,
)
from lepton_jax.numerics.masks import Block, Channel, NofM, Pattern, Unstructured
from lepton_jax.numerics.quantize import Quantized, Scheme, decode, encode, fake_quantize, scale_of


class SparseGPT(NamedTuple):
    """A weight pruned by SparseGPT.

    Attributes:
        weight: of the weight's shape and dtype, zero where the mask says so.
        mask: bool, which weights stay.
        quantized: codes, scale and zero, exactly as `quantize` gives them; None without a scheme.
        damping: f32[groups], the part of the Hessian's mean diagonal that was added to it.
        plain: bool[groups], where the Hessian is not finite or could not be factored: the smallest weights
            have gone, and no other was changed.
    """

    weight: jax.Array
    mask: jax.Array
    quantized: Quantized | None
    damping: jax.Array
    plain: jax.Array


@partial(jax.jit, static_argnames=("pattern", "layout", "along", "damping", "sweeps", "block", "scheme"))
def sparsegpt(
    w: jax.Array,
    hessian: jax.Array,
    sparsity: float | jax.Array = 0.5,
    *,
    pattern: Pattern = Unstructured(),  # noqa: B008 (frozen)
    layout: MatrixLayout = MatrixLayout(),  # noqa: B008 (frozen)
    along: int | None = None,
    mask: jax.Array | None = None,
    damping: float = 0.01,
    sweeps: int = 0,
    block: int = 128,
    scheme: Scheme | None = None,
    scale: jax.Array | None = None,
    zero: jax.Array | None = None,
) -> SparseGPT:
    """A weight with zeros, chosen for the least squared error of the output, and the rest changed to match.

    For the stacked weights of a scan use `jax.vmap`.

    Args:
        w: floats, of any shape.
        hessian: Σ x xᵀ, f32[K, K], or one for each batch or group, f32[batch..., K, K]: `Hessian.matrix`. Its
            scale does not matter.
        sparsity: the share of weights that goes, 0 to 1, of each `block` of inputs; may be traced.
        pattern: what comes and goes together, see `masks`; on the matrix [K, N] of inputs and outputs.
        layout: which axes of `w` are contracted, are batches, or split into groups.
        along: the contracted axis that runs fastest in the rows of that matrix, as for 2 of 4 input channels
            of a convolution; the last of the layout if None.
        mask: which weights stay, if that is known already; bool, of the shape of `w`.
        damping: part of the mean diagonal that is added to the diagonal. Multiplied by ten until the Hessian
            can be factored.
        sweeps: afterwards, so many times, each input's weights again given all others. They go towards the
            least squares of those that stay.
        block: inputs whose masks are chosen at once.
        scheme: quantise what stays at the same time.
        scale: of `w`, if not what the scheme finds.
        zero: likewise.

    Returns:
        A `SparseGPT`.

    Raises:
        ValueError: if the Hessian or mask does not fit the weight, a setting is out of range, or n of m does
            not divide the axis.

    Example:
        >>> w = jnp.linspace(-1.0, 2.0, 24).reshape(8, 3)
        >>> pairs = sparsegpt(w, jnp.eye(8), pattern=NofM(2, 4)).weight
        >>> (pairs != 0).sum(0).tolist()
        [4, 4, 4]
    """
    hessian = as_hessians(hessian, w.shape, layout)
    batch, inputs, _ = layout.shape(w.shape)
    if not damping > 0 or block < 1 or sweeps < 0:
        said = f"damping={damping}, block={block}, sweeps={sweeps}"
        raise ValueError(f"damping and block must be positive and sweeps not negative: {said}")
    if mask is not None and mask.shape != w.shape:
        raise ValueError(f"the mask has shape {mask.shape}, the weight {w.shape}")
    along = layout.axes[-1] if along is None else along
    within = layout.fastest(along, w.ndim)
    order = layout.order(within, w.shape)
    _check_groups(pattern, w.shape[along], inputs)
    arrays = [within.to_matrix(w.astype(jnp.float32))]
    if scheme is not None:
        if scale is None:
            scale, zero = scale_of(w, scheme)
        arrays += [
            within.to_matrix(spread(array, scheme, w.shape)) for array in (scale, zero) if array is not None
        ]
    if not w.size:
        ones = jnp.full(batch, damping, jnp.float32)
        kept = jnp.ones(w.shape, bool)
        return SparseGPT(w, kept, _codes(w, scheme, scale, zero), ones, jnp.zeros(batch, bool))
    solve = partial(
        _solve,
        share=jnp.asarray(sparsity, jnp.float32),
        pattern=pattern,
        damping=damping,
        sweeps=sweeps,
        block=min(block, inputs),
        value=_kept if scheme is None else partial(_rounded, scheme=one_scale_each(scheme)),
    )
    hessians = hessian[:, order][:, :, order]
    chosen = None if mask is None else within.to_matrix(mask)
    values, kept, used, plain = on_each(solve, hessians, chosen, *arrays)
    found, kept = within.from_matrix(values, w.shape), within.from_matrix(kept, w.shape)
    q = _codes(found, scheme, scale, zero)
    if scheme is None or q is None:
        return SparseGPT(found.astype(w.dtype), kept, None, used, plain)
    decoded = jnp.where(kept, decode(*q, scheme, w.dtype), jnp.zeros((), w.dtype))
    return SparseGPT(decoded, kept, q, used, plain)


def _codes(
    w: jax.Array, scheme: Scheme | None, scale: jax.Array | None, zero: jax.Array | None
) -> Quantized | None:
    if scheme is None or scale is None:
        return None
    return Quantized(encode(w, scale, zero, scheme), scale, zero)


def _check_groups(pattern: Pattern, size: int, inputs: int) -> None:
    if isinstance(pattern, NofM) and size != inputs and size % pattern.m:
        raise ValueError(f"{size} inputs do not split into groups of {pattern.m}")


def _kept(row: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, row, 0.0)


def _rounded(row: jax.Array, mask: jax.Array, *steps: jax.Array, scheme: Scheme) -> jax.Array:
    return jnp.where(mask, fake_quantize(row, scheme, *steps), 0.0)


def _solve(
    hessian: jax.Array,
    mask: jax.Array | None,
    w: jax.Array,
    *steps: jax.Array,
    share: jax.Array,
    pattern: Pattern,
    damping: float,
    sweeps: int,
    block: int,
    value: Callable[..., jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The values of w[K, N], its mask, the damping, and whether nothing but the smallest have gone."""
    is_read = jnp.diagonal(hessian) > 0
    hessian = normalised(hessian)
    factor, used, ok = factored(hessian, damping)
    is_read |= ~ok | ~jnp.any(is_read)
    if mask is None:
        choose = partial(_chosen, pattern=pattern, share=share)
        state, mask = _pruned(factor, is_read, (w, *steps), choose, value, _sizes(pattern, len(w), block))
    else:
        arrays = (w, mask, *steps)
        state = row_by_row(from_earlier(factor), jnp.zeros_like(w), arrays, value, block)
    _, values = swept(sweeps, from_all(hessian, used, ok), state, (w, mask, *steps), value, block)
    return values, mask, used, ~ok


def _sizes(pattern: Pattern, inputs: int, block: int) -> tuple[int, int]:
    """How many rows are corrected by one product, and of how many a mask is chosen at once."""
    if isinstance(pattern, Channel):
        return inputs, inputs
    if isinstance(pattern, NofM):
        return -(-block // pattern.m) * pattern.m, pattern.m
    rows = pattern.shape[-2] if isinstance(pattern, Block) and len(pattern.shape) > 1 else 1
    even = -(-inputs // -(-inputs // block))  # so that the last is about as large as the others
    whole = -(-even // rows) * rows
    return whole, whole


def _chosen(scores: jax.Array, is_there: jax.Array, *, pattern: Pattern, share: jax.Array) -> jax.Array:
    """The mask of some rows by their scores [B, N], those that are there: bool[B, 1]."""
    if isinstance(pattern, NofM):
        return pattern.mask(jnp.where(is_there, scores, -jnp.inf), share)
    units = pattern.units(jnp.where(is_there, scores, 0.0))
    real = pattern.units(jnp.broadcast_to(is_there, scores.shape)) > 0
    units = jnp.where(real, units, jnp.inf)
    return pattern.among(units, share * jnp.sum(real) / real.size, scores.shape)


def _pruned(
    factor: jax.Array,
    is_read: jax.Array,
    arrays: tuple[jax.Array, ...],
    choose: Callable[[jax.Array, jax.Array], jax.Array],
    value: Callable[..., jax.Array],
    sizes: tuple[int, int],
) -> tuple[State, jax.Array]:
    """Choose the mask of some rows, prune them, and go on with those after them.

    Args:
        factor: of `factored`, f32[K, K].
        is_read: bool[K], whether the input was ever different from zero.
        arrays: w, its scales and perhaps zeros, all f32[K, N].
        choose: a mask, of the scores of some rows and of which of these are there.
        value: what becomes of a row, of its mask, scales and zeros.
        sizes: rows whose corrections are computed by one product, and of which a mask is chosen at once.

    Returns:
        The state of `row_by_row`, and the mask.
    """
    block, group = sizes
    inputs, outputs = arrays[0].shape
    if is_small(inputs, outputs):
        block = -(-inputs // group) * group
    count = -(-inputs // block)
    rest = count * block - inputs
    # What is not there stands for itself: ones along the diagonal.
    square = jnp.pad(factor, ((0, rest), (0, rest))) + jnp.diag(jnp.arange(inputs + rest) >= inputs)
    weights = from_earlier(square)
    size = jnp.pad(jnp.diagonal(factor) * is_read, (0, rest))
    split = [jnp.pad(a, ((0, rest), (0, 0)), constant_values=1).reshape(count, block, -1) for a in arrays]

    def one_block(
        errors: jax.Array, part: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        start, *rows = part
        column = lax.dynamic_slice_in_dim(weights, start, block, 1)
        inner = lax.dynamic_slice_in_dim(column, start, block)
        far = jnp.matmul(column.T, errors, precision=lax.Precision.HIGHEST)  # those after it have none yet

        def one_group(near: jax.Array, at: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            own = lax.dynamic_slice(inner, (at, at), (group, group))
            before = lax.dynamic_slice_in_dim(inner, at, group, 1)
            added = lax.dynamic_slice_in_dim(far, at, group)
            added += jnp.matmul(before.T, near, precision=lax.Precision.HIGHEST)
            some = [lax.dynamic_slice_in_dim(row, at, group) for row in rows]
            # What these rows would be if none of them were pruned.
            unit = own.T + jnp.eye(group, dtype=own.dtype)
            free = some[0] + lax.linalg.triangular_solve(
                unit, added, left_side=True, lower=True, unit_diagonal=True
            )
            place = start + at + jnp.arange(group)
            scores = jnp.square(free * lax.dynamic_slice_in_dim(size, start + at, group)[:, None])
            mask = choose(scores, (place < inputs)[:, None])
            off, values = rows_of_block(own, jnp.zeros_like(free), added, (some[0], mask, *some[1:]), value)
            return lax.dynamic_update_slice_in_dim(near, off, at, 0), (values, mask)

        near, found = lax.scan(one_group, jnp.zeros_like(rows[0]), jnp.arange(0, block, group))
        return lax.dynamic_update_slice_in_dim(errors, near, start, 0), found

    start = jnp.zeros((inputs + rest, outputs), jnp.float32)
    if count == 1:
        errors, found = one_block(start, (jnp.zeros((), jnp.int32), *(array[0] for array in split)))
    else:
        errors, found = lax.scan(one_block, start, (jnp.arange(count) * block, *split))
    values, mask = (array.reshape(-1, outputs)[:inputs] for array in found)
    return (errors[:inputs], values), mask
