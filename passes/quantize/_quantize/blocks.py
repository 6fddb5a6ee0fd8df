"""Products in floats with a weight in codes that is decoded a block of output channels at a time.

Decoding a whole weight at each call writes an array of at least four times the size of the codes to memory
and reads it again. A block of it stays in the cache.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import store
from lepton_jax.numerics.packing import pack, pieces, unpack, unpack_pieces
from lepton_jax.numerics.quantize import Quantized, Scheme, decode
from lepton_jax.passes.quantize._quantize.weights import Storage, coded

Ints = tuple[int, ...]

BLOCK: Final = 2**20
"""Elements of a block: its floats, 4 MiB, fit into the cache of a core or two."""

_STEP: Final = 16

_CODES_TOGETHER: Final = 8
"""Packed codes of any number of bits fill whole bytes with so many."""


def channels_of_block(shape: Ints, contracted: Ints, batch: Ints) -> int:
    """How many of the first output channels are decoded at a time; 0: all of them, in no blocks.

    Args:
        shape: of the weight.
        contracted: its axes that are summed over.
        batch: its batch axes; such weights are not cut.

    Example:
        >>> channels_of_block((4096, 4096), (0,), ()), channels_of_block((64, 4096), (0,), ())
        (256, 0)
    """
    free = [i for i in range(len(shape)) if i not in contracted]
    if batch or not free or math.prod(shape) <= BLOCK:
        return 0
    count = shape[free[0]]
    most = max(BLOCK * count // math.prod(shape), 1)
    size = -(-count // -(-count // most))  # as many blocks, of equal size
    size = -(-size // _STEP) * _STEP if size > _STEP else size
    return size if size < count else 0


def in_blocks(
    weight: jax.Array, x: jax.Array, known: Any, storage: Storage, side: int, dims: Any, size: int
) -> jax.Array:
    """The product of a weight and activations in float32.

    The codes are kept with the output channels first and what is summed over last, packed along the last.

    Args:
        weight: floats, two axes or more, none of them a batch axis.
        x: floats.
        known: what calibration saw or training learned of the weight.
        storage: how the weight is kept.
        side: which operand is the weight.
        dims: `lax.dot_general`'s dimension numbers of the two operands in order.
        size: channels to a block, see `channels_of_block`.

    Returns:
        What `lax.dot_general` of the two gives, float32.
    """
    contracted = dims[0][side]
    free = tuple(i for i in range(weight.ndim) if i not in contracted)
    order = (*free, *sorted(contracted))
    q, scheme = ordered(coded(weight, storage, known), order), moved(storage.scheme, order)
    bits, last = scheme.fmt.bits, weight.shape[order[-1]]
    whole = pack(q.codes, bits, q.codes.ndim - 1) if storage.is_packed else q.codes
    codes, scale = store(whole), store(q.scale)
    zero = None if q.zero is None else store(q.zero)
    along = tuple(order.index(i) for i in contracted)
    x = x.astype(jnp.float32)
    count, blocks = weight.shape[free[0]], -(-weight.shape[free[0]] // size)
    place = 0 if side == 0 else x.ndim - len(contracted)
    many = _pieces(storage, scheme, last, len(contracted))
    xs = jnp.split(x, many, dims[0][1 - side][-1])

    def step(_: None, start: jax.Array) -> tuple[None, jax.Array]:
        part, scales = _cut(codes, start, size), _split(_cut(scale, start, size), many)
        zeros = [None] * many if zero is None else _split(_cut(zero, start, size), many)
        each = zip(unpacked(part), scales, zeros, xs, strict=True)
        return None, reduce(jnp.add, [product(*these) for these in each])

    def unpacked(part: jax.Array) -> list[jax.Array]:
        if not storage.is_packed:
            return [part]
        how = bits, last, part.ndim - 1, scheme.fmt.signed_codes
        return unpack_pieces(part, *how) if many > 1 else [unpack(part, *how)]

    def product(part: jax.Array, scales: jax.Array, zeros: jax.Array | None, x: jax.Array) -> jax.Array:
        w = decode(part, scales, zeros, scheme, jnp.float32)
        pair, axes = ((w, x), (along, dims[0][1])) if side == 0 else ((x, w), (dims[0][0], along))
        return lax.dot_general(*pair, (axes, ((), ())), preferred_element_type=jnp.float32)

    _, parts = lax.scan(step, None, jnp.arange(blocks) * size)
    return joined(parts, place, count)


def _pieces(storage: Storage, scheme: Scheme, last: int, contracted: int) -> int:
    """In how many pieces packed codes are decoded; 1: put together, where they end within bytes or groups."""
    many = pieces(scheme.fmt.bits) if storage.is_packed else 1
    if contracted > 1 or last % _CODES_TOGETHER:
        return 1
    return 1 if any(last // many % group for group in scheme.group_sizes) else many


def _split(x: jax.Array, many: int) -> list[jax.Array]:
    """Scales or zeros for each piece: those of its groups, or the same for all."""
    return [x] * many if x.shape[-1] == 1 else jnp.split(x, many, x.ndim - 1)


def ordered(q: Quantized, order: Ints) -> Quantized:
    """Codes, scale and zero with the weight's axes in another order."""
    zero = None if q.zero is None else lax.transpose(q.zero, order)
    return Quantized(lax.transpose(q.codes, order), lax.transpose(q.scale, order), zero)


def moved(scheme: Scheme, order: Ints) -> Scheme:
    """The scheme of a weight with its axes in another order."""
    shared = None if scheme.shared is None else tuple(order.index(i % len(order)) for i in scheme.shared)
    axes = tuple(order.index(i % len(order)) for i in scheme.group_axes)
    if not axes:
        return replace(scheme, shared=shared)
    return replace(scheme, shared=shared, group_axis=axes if len(axes) > 1 else axes[0])


def _cut(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """A block of the first axis, or all of it where it has one element; a block that would end beyond the
    axis ends with it."""
    return x if x.shape[0] == 1 else lax.dynamic_slice_in_dim(x, start, size, 0)


def joined(parts: jax.Array, place: int, count: int) -> jax.Array:
    """Blocks one after another along an axis, of which the last begins where it ends with the axis.

    Args:
        parts: [blocks, ...].
        place: the axis of the channels in each.
        count: channels in all.
    """
    blocks, size = parts.shape[0], parts.shape[1 + place]
    missing = blocks * size - count
    shape = parts.shape[1:]
    ordered = jnp.moveaxis(parts, 0, place)
    if not missing:
        return ordered.reshape(*shape[:place], count, *shape[place + 1 :])
    most = lax.slice_in_dim(ordered, 0, blocks - 1, axis=place)
    first = most.reshape(*shape[:place], (blocks - 1) * size, *shape[place + 1 :])
    rest = lax.slice_in_dim(parts[-1], missing, size, axis=place)
    return jnp.concatenate([first, rest], place)
