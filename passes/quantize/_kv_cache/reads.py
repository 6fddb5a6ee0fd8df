"""Products of floats with an array that is kept in codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.numerics.quantize import Scheme, encode, scale_of
from lepton_jax.passes.quantize._kv_cache.moves import Axes
from lepton_jax.passes.quantize._quantize.dots import Dims, in_result
from lepton_jax.targets.convolution_forms import has_dot_products

_FEW: Final = 8
"""Rows below which sums of products, converted on the way, are faster on a CPU than products of matrices."""

_FEWEST: Final = 4
"""The rows from which on a CPU multiplies int8 matrices fast."""


@dataclass(frozen=True)
class Read:
    """How a product reads codes.

    Attributes:
        side: which operand they are.
        dims: the dimension numbers.
        inner: whether the scales go along the sum: then the other operand takes them, else the result.
        scheme: how the other operand is rounded, so that codes are multiplied; None: it stays in floats.
        form: `rows`: with zeros up to four rows; `sums`: as sums of products, which the compiler converts on
            the way; `plain`: as it is.
        precision: of a product in floats.
        result: the dtype of the result.
    """

    side: int
    dims: Dims
    inner: bool
    scheme: Scheme | None
    form: Literal["plain", "rows", "sums"]
    precision: Any
    result: Any


def read_of(node: Node, side: int, shared: Axes, scheme: Scheme, platform: str) -> Read | None:
    """How a product reads codes with the scales of `scheme`; None where scales cannot be taken out of it."""
    (contracted, batch), codes, x = (
        node.params["dimension_numbers"],
        node.operands[side],
        node.operands[1 - side],
    )
    along = [axis for axis in contracted[side] if axis not in shared and codes.shape[axis] > 1]
    free = [axis for axis in range(codes.ndim) if axis not in (*contracted[side], *batch[side])]
    if along and any(axis not in shared and codes.shape[axis] > 1 for axis in free):
        return None
    if not all(type(d) is int for d in x.shape) or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    own = Scheme(scheme.fmt, shared=tuple(contracted[1 - side]))
    rows = math.prod(
        d for i, d in enumerate(x.shape) if i not in contracted[1 - side] and i not in batch[1 - side]
    )
    found, form = _form(rows, bool(along), own, platform)
    precision, result = node.params["precision"], node.result.dtype
    return Read(side, node.params["dimension_numbers"], bool(along), found, form, precision, result)


def _form(
    rows: int, inner: bool, own: Scheme, platform: str
) -> tuple[Scheme | None, Literal["plain", "rows", "sums"]]:
    if platform != "cpu":
        return own, "plain"
    if own.fmt.kind != "integer":
        return None, "sums" if rows < _FEW else "plain"
    if inner and rows < _FEW and not has_dot_products():
        return None, "sums"
    return own, "rows" if rows < _FEWEST else "plain"


def read(codes: jax.Array, scale: jax.Array, x: jax.Array, *, how: Read) -> jax.Array:
    """The product of `x` with what codes stand for.

    Args:
        codes: int8 or float8.
        scale: float32, of the same rank, with size one along shared axes.
        x: floats.
    """
    side, dims = how.side, how.dims
    x = x.astype(jnp.float32)
    if how.inner:
        x = x * _beside(scale, side, dims, x.ndim)
    if how.scheme is None:
        total = (_sums if how.form == "sums" else _floats)(codes, x, how)
    else:
        own, _ = scale_of(x, how.scheme)
        total = _codes(codes, encode(x, own, None, how.scheme), how) * in_result(
            own, 1 - side, dims, codes.ndim
        )
    if not how.inner:
        total = total * in_result(_short(scale, dims[0][side]), side, dims, x.ndim)
    return total.astype(how.result)


def _short(scale: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """A scale with one element along contracted axes, which all have the same."""
    for axis in axes:
        scale = lax.slice_in_dim(scale, 0, 1, axis=axis)
    return scale


def _beside(scale: jax.Array, side: int, dims: Dims, rank: int) -> jax.Array:
    """A scale along the sum in the other operand's order of axes."""
    mine, other = (*dims[1][side], *dims[0][side]), (*dims[1][1 - side], *dims[0][1 - side])
    sizes = [scale.shape[axis] for axis in mine]
    gone = [axis for axis in range(scale.ndim) if axis not in mine]
    left = [axis for axis in range(scale.ndim) if axis in mine]
    flat = lax.transpose(lax.squeeze(scale, gone), [left.index(axis) for axis in mine])
    order = sorted(range(len(other)), key=lambda i: other[i])
    shape = [1] * rank
    for axis, size in zip(other, sizes, strict=True):
        shape[axis] = size
    return lax.reshape(lax.transpose(flat, order), shape)


def _codes(codes: jax.Array, x: jax.Array, how: Read) -> jax.Array:
    """The product of codes; where that is the form, with rows of zeros that are left out again."""
    kind = jnp.int32 if jnp.issubdtype(codes.dtype, jnp.integer) else jnp.float32
    side, dims = how.side, how.dims
    free = _free(x, 1 - side, dims)
    if how.form != "rows" or len(free) > 1:
        return _dot(codes, x, side, dims, kind)
    if not free:
        x = x[None]
        both = [
            tuple(axis + (i != side) for axis in own) for own_pair in dims for i, own in enumerate(own_pair)
        ]
        dims = ((both[0], both[1]), (both[2], both[3]))
    (axis,) = free or [0]
    rows = x.shape[axis]
    more = [(0, (_FEWEST - rows) * (i == axis), 0) for i in range(x.ndim)]
    total = _dot(codes, lax.pad(x, jnp.zeros((), x.dtype), more), side, dims, kind)
    place = total.ndim - 1 if side == 0 else len(dims[1][0])
    total = lax.slice_in_dim(total, 0, rows, axis=place)
    return total if free else lax.squeeze(total, [place])


def _free(x: jax.Array, side: int, dims: Dims) -> list[int]:
    """The axes that the result has of an operand alone."""
    return [axis for axis in range(x.ndim) if axis not in (*dims[0][side], *dims[1][side])]


def _floats(codes: jax.Array, x: jax.Array, how: Read) -> jax.Array:
    return _dot(codes.astype(jnp.float32), x, how.side, how.dims, jnp.float32, how.precision)


def _dot(
    codes: jax.Array, x: jax.Array, side: int, dims: Dims, kind: Any, precision: Any = None
) -> jax.Array:
    lhs, rhs = (codes, x) if side == 0 else (x, codes)
    found = lax.dot_general(lhs, rhs, dims, precision=precision, preferred_element_type=kind)
    return found.astype(jnp.float32)


def _sums(codes: jax.Array, x: jax.Array, how: Read) -> jax.Array:
    """The product as a sum of products, element by element, in the order of the codes' axes."""
    side, dims = how.side, how.dims
    rows, columns = _free(x, 1 - side, dims), _free(codes, side, dims)
    places = {axis: place for place, axis in enumerate(rows)}
    for mine, other in zip(
        (*dims[0][side], *dims[1][side]), (*dims[0][1 - side], *dims[1][1 - side]), strict=True
    ):
        places[other] = len(rows) + mine
    full = (*(x.shape[axis] for axis in rows), *codes.shape)
    order = sorted(range(x.ndim), key=lambda axis: places[axis])
    spread = lax.broadcast_in_dim(lax.transpose(x, order), full, sorted(places.values()))
    summed = [len(rows) + axis for axis in dims[0][side]]
    total = jnp.sum(spread * codes.astype(jnp.float32), axis=summed)
    left = [place for place in range(len(full)) if place not in summed]
    first, second = [len(rows) + axis for axis in columns], [*range(len(rows))]
    wanted = [len(rows) + axis for axis in dims[1][side]] + (first + second if side == 0 else second + first)
    return lax.transpose(total, [left.index(place) for place in wanted])
