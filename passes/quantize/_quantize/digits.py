"""Products of activations in floats with a weight in codes, as products of int8 numbers.

Each row of activations is scaled by its largest magnitude and taken apart in two or three digits of base
128, so in 15 or 22 bits; the digits are multiplied as int8 with the codes of the weight and added up, each
as much as it counts. Floating-point products as sums of products of integers are those of Ozaki, Ogita,
Oishi and Rump, "Error-free transformations of matrix multiplication by using fast routines of matrix
multiplication and its applications" (Numerical Algorithms 59, 2012); Ootomo, Ozaki and Yokota, "DGEMM on
integer matrix multiplication unit" (IJHPCA 38, 2024), do it with int8.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import store
from lepton_jax.numerics.packing import pack, pieces, unpack_pieces
from lepton_jax.numerics.quantize import Scheme, decode, scale_of
from lepton_jax.passes.lower._layout import row_major
from lepton_jax.passes.lower._products.unsigned import as_signed, as_unsigned
from lepton_jax.passes.lower._products.write import write_product
from lepton_jax.passes.quantize._quantize.blocks import joined, ordered
from lepton_jax.passes.quantize._quantize.weights import Storage, coded
from lepton_jax.targets.forms import Form, product_form, unsigned_form, unsigned_rows

_BASE: Final = 128
"""Of the digits: they are -127 to 127, and those after the first -64 to 64."""

_FEW_ROWS: Final = 4
"""Up to so many rows three digits take as long as two."""

_CODES_TOGETHER: Final = 8
"""Packed codes of any number of bits fill whole bytes with so many."""

_MOST_SUMMED: Final = 2**31 // 127**2
"""How many products of int8 numbers int32 holds the sum of."""


@dataclass(frozen=True)
class Digits:
    """How a product is made of products of int8 numbers.

    Attributes:
        count: of the digits; 0: two, or three where they take no longer. Activations in codes are one digit.
        unsigned: whether the codes are kept as uint8, 128 more.
        block: how many output channels are unpacked at a time; 0: all of them.
    """

    count: int = 0
    unsigned: bool = False
    block: int = 0


@dataclass(frozen=True)
class _Matrix:
    """A weight as a matrix of codes, and how its digits are multiplied: static.

    Attributes:
        how: unsigned or not, and in which blocks.
        count: of the digits.
        scheme: of the weight, its axes [outputs, summed].
        packed: whether codes are packed along what is summed over.
        columns: outputs.
        inner: what is summed over.
    """

    how: Digits
    count: int
    scheme: Scheme
    packed: bool
    columns: int
    inner: int

    @property
    def pieces(self) -> int:
        """In how many pieces of what is summed over codes are unpacked."""
        return pieces(self.scheme.fmt.bits) if self.packed else 1


def why_not_digits(storage: Storage, summed: tuple[int, ...]) -> str | None:
    """Why a weight is decoded, and not multiplied in digits.

    Args:
        summed: the sizes of its axes that are summed over.
    """
    scheme, inner = storage.scheme, math.prod(summed)
    if scheme.fmt.kind != "integer" or scheme.fmt.block or scheme.fmt.bits > 8:
        return f"codes of {scheme.fmt} are not multiplied as int8"
    if scheme.group_sizes:
        return "products of groups are faster in floats"
    if inner > _MOST_SUMMED:
        return f"int32 does not hold sums of {inner} products"
    if storage.is_packed and (len(summed) > 1 or inner % _CODES_TOGETHER):
        return "packed codes end within a byte"
    return None


def number_of_digits(rows: int) -> int:
    """How many digits rows are taken apart in where nobody says it; the number of rows may be symbolic."""
    return 2 + (type(rows) is int and rows <= _FEW_ROWS)


def digits_of(x: jax.Array, scale: jax.Array, count: int) -> jax.Array:
    """Rows as digits of base 128, those that count most first: int8 [count · rows, summed].

    Args:
        x: float32 [rows, summed].
        scale: float32 [rows, 1], a 127th of the largest magnitudes.
        count: 2 or 3.

    Example:
        >>> digits_of(jnp.array([[127.0, -1.5, 0.25]]), jnp.ones((1, 1)), 2).tolist()
        [[127, -2, 0], [0, 64, 32]]
    """
    rest = x * (1 / scale) * _BASE ** (count - 1)
    found = []
    for place in reversed(range(count)):
        unit = float(_BASE**place)
        digit = jnp.round(rest / unit)
        rest = rest - digit * unit
        found.append(digit.astype(jnp.int8))
    return jnp.concatenate(found)


def product_in_digits(
    weight: jax.Array, x: jax.Array, known: Any, storage: Storage, side: int, dims: Any, how: Digits
) -> jax.Array:
    """The product of a weight and activations, which are taken apart in digits.

    The codes are kept with the output channels first and what is summed over last, packed along it.
    Derivatives are those of the product with the decoded weight.

    Args:
        weight: floats, none of its axes a batch axis.
        x: floats.
        known: what calibration saw or training learned of the weight.
        storage: how the weight is kept.
        side: which operand the weight is.
        dims: `lax.dot_general`'s dimension numbers of the two operands in order.
        how: the digits.

    Returns:
        What `lax.dot_general` of the two gives, float32.
    """
    partners = dims[0][1 - side]
    flat = _rows(x.astype(jnp.float32), partners)
    count = how.count or number_of_digits(flat.shape[0])
    codes, scale, zero, matrix = _kept(weight, known, storage, dims[0][side], how, count)
    return _result(_product(flat, codes, scale, zero, matrix), weight, x, side, dims)


def product_of_codes(
    weight: jax.Array, codes: jax.Array, known: Any, storage: Storage, side: int, dims: Any, how: Digits
) -> jax.Array:
    """The product of a weight and activations in codes, not scaled by the activations' scale: float32.

    Args:
        codes: int8.
        weight, known, storage, side, dims, how: as in `product_in_digits`.
    """
    kept, scale, zero, matrix = _kept(weight, known, storage, dims[0][side], how, 1)
    return _result(
        _sums(_rows(codes, dims[0][1 - side]), kept, scale, zero, matrix), weight, codes, side, dims
    )


def _rows(x: jax.Array, summed: tuple[int, ...]) -> jax.Array:
    """An array as [rows, summed]."""
    rows = [i for i in range(x.ndim) if i not in summed]
    return lax.transpose(x, (*rows, *summed)).reshape(-1, math.prod(x.shape[i] for i in summed))


def _kept(
    weight: jax.Array, known: Any, storage: Storage, summed: tuple[int, ...], how: Digits, count: int
) -> tuple[jax.Array, jax.Array, jax.Array | None, _Matrix]:
    """What is kept of a weight: codes [outputs, summed], scales [outputs, 1], zeros; and what they are."""
    free = [i for i in range(weight.ndim) if i not in summed]
    q = ordered(coded(weight, storage, known), (*free, *summed))
    sizes = [weight.shape[i] for i in free]
    columns, inner = math.prod(sizes), weight.size // math.prod(sizes)

    def by_column(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (*sizes, *x.shape[len(free) :])).reshape(columns, 1)

    codes = pack(q.codes, storage.scheme.fmt.bits, q.codes.ndim - 1) if storage.is_packed else q.codes
    codes = store(as_unsigned(codes) if how.unsigned else codes).reshape(columns, -1)
    zero = None if q.zero is None else by_column(store(q.zero))
    scheme = replace(storage.scheme, shared=(1,))
    return (
        codes,
        by_column(store(q.scale)),
        zero,
        _Matrix(how, count, scheme, storage.is_packed, columns, inner),
    )


def _result(y: jax.Array, weight: jax.Array, x: jax.Array, side: int, dims: Any) -> jax.Array:
    """[rows, outputs] as `lax.dot_general` gives it."""
    outputs, sizes = (
        [size for i, size in enumerate(each.shape) if i not in dims[0][at]]
        for each, at in ((weight, side), (x, 1 - side))
    )
    return y.T.reshape(*outputs, *sizes) if side == 0 else y.reshape(*sizes, *outputs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _product(
    x: jax.Array, codes: jax.Array, scale: jax.Array, zero: jax.Array | None, matrix: _Matrix
) -> jax.Array:
    """x [rows, summed] times codes [outputs, summed]ᵀ with scales [outputs, 1]: [rows, outputs]."""
    if x.shape[0] == 0:
        return _decoded(x, codes, scale, zero, matrix)
    own, _ = scale_of(x, Scheme("int8", shared=(1,)))
    return _sums(digits_of(x, own, matrix.count), codes, scale, zero, matrix) * own


@_product.defjvp
def _product_jvp(matrix: _Matrix, primals: Any, tangents: Any) -> Any:
    x, codes, scale, zero = primals
    dx, _, dscale, _ = tangents
    _, dy = jax.jvp(lambda x, scale: _decoded(x, codes, scale, zero, matrix), (x, scale), (dx, dscale))
    return _product(x, codes, scale, zero, matrix), dy


def _sums(
    digits: jax.Array, codes: jax.Array, scale: jax.Array, zero: jax.Array | None, matrix: _Matrix
) -> jax.Array:
    """The product of digits with codes, each digit as much as it counts: float32 [rows, outputs].

    Args:
        digits: int8 [digits · rows, summed].
        codes, scale, zero: of the weight.
    """
    if not matrix.how.block:
        return _part(digits, codes, scale, zero, matrix)
    size, columns = matrix.how.block, matrix.columns

    def step(_: None, start: jax.Array) -> tuple[None, jax.Array]:
        cut = functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        return None, _part(digits, cut(codes), cut(scale), None if zero is None else cut(zero), matrix)

    _, parts = lax.scan(step, None, jnp.arange(-(-columns // size)) * size)
    return joined(parts, 1, columns)


def _decoded(
    x: jax.Array, codes: jax.Array, scale: jax.Array, zero: jax.Array | None, matrix: _Matrix
) -> jax.Array:
    """The product with the decoded weight."""
    whole = jnp.concatenate(_unpacked(codes, matrix), 1)
    weight = decode(whole, scale, zero, matrix.scheme)
    return lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _unpacked(codes: jax.Array, matrix: _Matrix) -> list[jax.Array]:
    """The codes, int8, in pieces one after another along what is summed over."""
    form = matrix.scheme.fmt
    if matrix.packed:
        return unpack_pieces(codes, form.bits, matrix.inner, 1, form.signed_codes)
    return [as_signed(codes) if matrix.how.unsigned else codes]


def _part(
    digits: jax.Array, codes: jax.Array, scale: jax.Array, zero: jax.Array | None, matrix: _Matrix
) -> jax.Array:
    """The product of some outputs before it is scaled by rows: float32 [rows, outputs].

    Args:
        digits: int8 [digits · rows, summed].
        codes: of these outputs, as they are kept.
        scale, zero: of these outputs.
        matrix: all of the weight.
    """
    split = jnp.split(digits, matrix.pieces, 1)
    if matrix.how.unsigned:
        total = _dot(split[0], codes, unsigned=True)
    else:
        weights = lax.optimization_barrier(_unpacked(codes, matrix)) if matrix.packed else [codes]
        total = functools.reduce(jnp.add, [_dot(x, w) for x, w in zip(split, weights, strict=True)])
    y = added_up(total.astype(jnp.float32), matrix.count)
    if zero is not None:
        sums = jnp.sum(digits, 1, dtype=jnp.int32, keepdims=True).astype(jnp.float32)
        y = y - added_up(sums, matrix.count) * zero.astype(jnp.float32).T
    return y * scale.astype(jnp.float32).T


def _dot(digits: jax.Array, codes: jax.Array, *, unsigned: bool = False) -> jax.Array:
    """digits [rows, summed] times codes [outputs, summed]ᵀ in int32, in the form that a CPU is fast at."""
    (rows, inner), columns = digits.shape, codes.shape[0]
    if type(rows) is not int:
        weight = as_signed(codes) if unsigned else codes
        return lax.dot_general(digits, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    if unsigned and rows > unsigned_rows("cpu", "int8", codes.size):
        codes, unsigned = lax.optimization_barrier(as_signed(codes)), False
    fast = product_form("cpu", "int8", rows, inner, columns, by_rows=True, always=True)
    form = unsigned_form(rows) if unsigned else fast or Form("rows", rows)
    return write_product(
        digits,
        codes,
        batch=(),
        rows=(rows,),
        columns=(columns,),
        form=form,
        x_first=True,
        x_order=None,
        x_by_rows=True,
        pin=row_major,
        precision=None,
        wide=jnp.int32,
        dtype=jnp.int32,
    )


def added_up(x: jax.Array, count: int, axis: int = 0) -> jax.Array:
    """What digits give, one after another along an axis, [digits · rows, …], each as much as it counts."""
    first, *others = jnp.split(x, count, axis)
    return sum((part * float(_BASE) ** -(i + 1) for i, part in enumerate(others)), first)
