"""Products of a quantised weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import store
from lepton_jax.numerics.quantize import Scheme, decode, encode, scale_of
from lepton_jax.passes.quantize._quantize.blocks import in_blocks
from lepton_jax.passes.quantize._quantize.digits import Digits, product_in_digits, product_of_codes
from lepton_jax.passes.quantize._quantize.learned import input_scale, of_weight
from lepton_jax.passes.quantize._quantize.observing import by_kind
from lepton_jax.passes.quantize._quantize.weights import Storage, as_float, kept, summed

Axes = tuple[tuple[int, ...], tuple[int, ...]]
Dims = tuple[Axes, Axes]
"""`lax.dot_general`'s dimension numbers: contracting axes, and batch axes."""


@dataclass(frozen=True)
class Product:
    """How a product is quantised.

    Attributes:
        side: which operand is the weight.
        dims: the dimension numbers.
        storage: how the weight is kept.
        activations: how the other operand is quantised; None: not at all.
        precision: of a product in floats.
        result: the dtype of the result.
        balance: `smoothquant` or `awq`: before anything else inputs are divided by a number for each
            channel, and the weight is multiplied by it; see `balancing`.
        kinds: what calibration has seen.
        block: how many output channels of a weight are decoded at a time, see `blocks`; 0: all of them.
        digits: how activations in floats, or a packed weight, are multiplied as int8, see `digits`.
    """

    side: int
    dims: Dims
    storage: Storage
    activations: Scheme | None
    precision: Any
    result: Any
    balance: str | None = None
    kinds: tuple[str, ...] = ()
    block: int = 0
    digits: Digits | None = None

    @property
    def channel(self) -> int:
        """The axis of the weight whose channels are balanced."""
        return self.dims[0][self.side][0]

    @property
    def partner(self) -> int:
        """The axis of the other operand that is contracted with it."""
        return self.dims[0][1 - self.side][0]


def product(lhs: jax.Array, rhs: jax.Array, *others: jax.Array, how: Product) -> jax.Array:
    """A product with a weight that is kept in codes.

    Args:
        others: what calibration has seen.
    """
    weight, x = (lhs, rhs) if how.side == 0 else (rhs, lhs)
    seen = by_kind(others, how.kinds)
    known = of_weight(seen)
    if how.activations is None and how.digits is not None:
        y = product_in_digits(weight, x, known, how.storage, how.side, how.dims, how.digits)
        return y.astype(how.result)
    if how.activations is None and how.block:
        y = in_blocks(weight, x, known, how.storage, how.side, how.dims, how.block)
        return y.astype(how.result)
    if how.activations is None:
        weight = decode(*kept(weight, how.storage, known), how.storage.scheme, weight.dtype)
        lhs, rhs = (weight, x) if how.side == 0 else (x, weight)
        return lax.dot_general(lhs, rhs, how.dims, precision=how.precision, preferred_element_type=how.result)
    limits = _limits(seen, how.activations)
    return _of_codes(weight, x, limits, known, how, how.activations)


def _limits(
    seen: dict[str, tuple[jax.Array, ...]], scheme: Scheme
) -> tuple[jax.Array, jax.Array | None] | None:
    """Scale and zero of activations, where calibration has seen them."""
    found = input_scale(seen, scheme)
    if found is None:
        return None
    scale, zero = found
    return store(scale), None if zero is None else store(zero)


def _of_codes(
    weight: jax.Array,
    x: jax.Array,
    limits: tuple[jax.Array, jax.Array | None] | None,
    known: Any,
    how: Product,
    activations: Scheme,
) -> jax.Array:
    """A product of codes, scaled afterwards."""
    side, dims = how.side, how.dims
    scale, zero = scale_of(x, activations) if limits is None else limits
    codes = encode(x, scale, zero, activations)
    if how.digits is not None:
        total = product_of_codes(weight, codes, known, how.storage, side, dims, how.digits)
        return (total * in_result(as_float(scale), 1 - side, dims, weight.ndim)).astype(how.result)
    w = kept(weight, how.storage, known)
    if how.storage.scheme.group_sizes:
        total = _grouped(w.codes, w.scale, codes, side, how.storage, dims)
    else:
        total = as_float(_dot(w.codes, codes, side, dims))
        if w.zero is not None:
            sums = summed(codes, dims[0][1 - side])
            zeros = as_float(in_result(w.zero, side, dims, x.ndim))
            total -= zeros * as_float(in_result(sums, 1 - side, dims, weight.ndim))
        if zero is not None:
            sums = store(summed(w.codes, dims[0][side]))
            zeros = as_float(in_result(zero, 1 - side, dims, weight.ndim))
            total -= zeros * as_float(in_result(sums, side, dims, x.ndim))
        total *= in_result(as_float(w.scale), side, dims, x.ndim)
    return (total * in_result(as_float(scale), 1 - side, dims, weight.ndim)).astype(how.result)


def _dot(weight: jax.Array, x: jax.Array, side: int, dims: Dims) -> jax.Array:
    """The product of codes, exact for integers."""
    kind = jnp.int32 if jnp.issubdtype(weight.dtype, jnp.integer) else jnp.float32
    lhs, rhs = (weight, x) if side == 0 else (x, weight)
    return lax.dot_general(lhs, rhs, dims, preferred_element_type=kind)


def in_result(x: jax.Array, side: int, dims: Dims, other: int) -> jax.Array:
    """An array with one element along contracted axes, so that it broadcasts against the product.

    Args:
        x: of the rank of the operand on that side.
        other: the rank of the other operand.
    """
    contracted, batch = dims[0][side], dims[1][side]
    if x.ndim == 0:
        return x
    free = [i for i in range(x.ndim) if i not in contracted and i not in batch]
    ordered = lax.transpose(x, (*batch, *free, *contracted))
    sizes = [ordered.shape[i] for i in range(len(batch) + len(free))]
    ones = [1] * (other - len(contracted) - len(batch))
    leading, trailing = sizes[: len(batch)], sizes[len(batch) :]
    return lax.reshape(ordered, (*leading, *trailing, *ones) if side == 0 else (*leading, *ones, *trailing))


def _grouped(
    weight: jax.Array, scale: jax.Array, x: jax.Array, side: int, storage: Storage, dims: Dims
) -> jax.Array:
    """The product of codes with a scale for each group of a contracted axis, zero points none.

    Groups are one more batch axis; their products are scaled and added up.
    """
    (axis,), (size,) = storage.scheme.group_axes, storage.scheme.group_sizes
    partner = dims[0][1 - side][dims[0][side].index(axis)]
    weight, x = _split(weight, axis, size), _split(x, partner, size)
    places = (axis, partner) if side == 0 else (partner, axis)
    pairs = (_shifted(dims[0], places), _with_groups(dims[1], places))
    total = _dot(weight, x, side, pairs)
    scale = jnp.expand_dims(scale, axis + 1)
    return jnp.sum(as_float(total) * in_result(as_float(scale), side, pairs, x.ndim), axis=0)


def _shifted(axes: Axes, places: tuple[int, int]) -> Axes:
    """Contracted axes of both operands: where an axis of each became two, the second is contracted."""
    left, right = (tuple(i + (i >= at) for i in own) for own, at in zip(axes, places, strict=True))
    return left, right


def _with_groups(axes: Axes, places: tuple[int, int]) -> Axes:
    """Batch axes of both operands, and in front the groups."""
    left, right = ((at, *(i + (i > at) for i in own)) for own, at in zip(axes, places, strict=True))
    return left, right


def _split(x: jax.Array, axis: int, size: int) -> jax.Array:
    """An axis as groups and what is in them; a last group that is short is filled with zeros."""
    groups = -(-x.shape[axis] // size)
    missing = groups * size - x.shape[axis]
    if missing:
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, missing * (i == axis), 0) for i in range(x.ndim)])
    return x.reshape(*x.shape[:axis], groups, size, *x.shape[axis + 1 :])
