"""Which form of a product is fast on which target, as measured.

The figures behind the tables are printed by `python benchmarks/forms.py`. Only what was measured is in
them: what they do not name stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

import jax

from lepton_jax.targets import processor

WeightAt = Literal["plain", "rows", "turned", "unsigned"]
"""`plain`: x·w, the weight stored K×N, or however it is; `rows`: x·wᵀ, the weight stored N×K; `turned`:
w·xᵀ, the weight stored N×K, and the result transposed; `unsigned`: that with a weight of int8 stored as
uint8, 128 more, which what is subtracted from the result makes up for."""

LEAST_WEIGHT: Final = 2**14
"""Elements of a weight below which starting the product takes as long as the product."""

FEW_CHANNELS: Final = 16
"""Channels up to which an int8 convolution on CPU is as fast in float32, without dot products of int8."""

MOST_PATCH: Final = 192
"""Numbers in a patch above which writing the patches out takes longer than that saves."""

PACKED_CHANNELS: Final = 16
"""Channels to which the blocks of pixels of a first convolution are filled up."""


@dataclass(frozen=True)
class Form:
    """How to write a product of activations [M, K] with a weight.

    Attributes:
        weight_at: where the weight stands, and how it is stored.
        rows: how many rows the activations have, padded with rows of zeros where they have fewer.
    """

    weight_at: WeightAt
    rows: int


@dataclass(frozen=True)
class Limits:
    """How products of one dtype are fast on one platform.

    Attributes:
        turned_rows: up to so many rows w·xᵀ is the fastest form.
        filled: with other numbers of rows it is the fastest once they are filled up: from how many rows on,
            and to how many.
        turned_inner: how long the sums are that w·xᵀ is fast with, at least; shorter ones are x·wᵀ.
        by_rows: with more rows, whether a weight stored N×K is faster than one stored K×N.
        least_rows: with a weight stored N×K, fewer rows are padded up to so many.
        lone_row: to how many rows a single one is padded where the weight is stored K×N.
        by_columns: whether activations stored K×M want the weight on the left too.
        merged: elements up to which the weights of products that read one input are put together before the
            first call; 0: never.
    """

    turned_rows: int = 0
    filled: tuple[tuple[int, int], ...] = ()
    turned_inner: int = 0
    by_rows: bool = True
    least_rows: int = 1
    lone_row: int = 1
    by_columns: bool = False
    merged: int = 0


_INT8: Final = Limits(turned_rows=64, least_rows=4, lone_row=4, by_columns=True, merged=2**22)

# Where the processor has instructions for products of bfloat16 (AMX, AVX-512 BF16), they have the forms of
# int8: the weight on the left, and one row padded to four. Without such instructions they are best left to
# XLA. int8 has the same forms with instructions for it (VNNI, AMX) and without.
_BFLOAT16: Final = Limits(turned_rows=64, by_rows=False, least_rows=4, lone_row=4)

# On CPU, XLA hands products to a library when they have a form that it knows. One row of int8
# never has, and four rows are 10× faster. A product with few rows is fast with the weight on the left, of
# which the library then copies nothing. On GPU, int8 and fp8 products want both matrices stored along what
# is summed over. Products of int8 that read one input are faster as one while their weights are small; of
# float32 only at some numbers of rows, and slower at one.
PRODUCTS: Final[Mapping[tuple[str, str], Limits]] = MappingProxyType(
    {
        ("cpu", "int8"): _INT8,
        ("cpu", "float32"): Limits(turned_rows=32, by_rows=False),
        ("cpu", "bfloat16"): _BFLOAT16,
        ("gpu", "int8"): Limits(),
        ("gpu", "float8_e4m3fn"): Limits(),
        ("gpu", "float8_e5m2"): Limits(),
    }
)

_IS_NEW: Final = jax.__version_info__ >= (0, 11)

# With AVX-512 and without AMX, w·xᵀ multiplies 16, 32 or 64 rows at once, and is slow at what is left over.
_VECTORS: Final[Mapping[str, Limits]] = MappingProxyType(
    {
        "int8": replace(_INT8, turned_rows=32 if _IS_NEW else 64),
        "float32": Limits(turned_rows=4, filled=((5, 8), (9, 16), (17, 32), (49, 64)), by_rows=False),
        "bfloat16": replace(
            _BFLOAT16,
            turned_rows=0 if _IS_NEW else 4,
            filled=((1, 16), (17, 32), (33, 64)),
            turned_inner=1536,
        ),
    }
)

_UNSIGNED_FILLED: Final = ((5, 8), (25, 32), (33 if _IS_NEW else 49, 64))
"""The same of weights stored as unsigned numbers."""

_MANY_ROWS: Final = 128
"""Rows up to which a weight has to be faster as unsigned numbers, to be kept so for any number of rows."""


def limits_of(platform: str, dtype: str) -> Limits | None:
    """How products of a dtype are fast on a platform: on CPU, on the processor of this machine.

    Example:
        >>> limits_of("cpu", "int8").turned_rows in (32, 64), limits_of("gpu", "int8").turned_rows
        (True, 0)
    """
    if (platform, dtype) == ("cpu", "bfloat16") and not processor.multiplies_bfloat16():
        return None
    if platform == "cpu" and processor.multiplies_vectors():
        return _VECTORS.get(dtype)
    return PRODUCTS.get((platform, dtype))


def _filled(rows: int, steps: tuple[tuple[int, int], ...]) -> int | None:
    """To how many rows these are filled up; None: they are not."""
    return next((most for least, most in steps if least <= rows <= most), None)


# Elements of a weight, and up to how many rows it is faster as unsigned numbers. With JAX 0.10 products of
# int8 with int8 take twice as long.
_UNSIGNED: Final = ((2**22, 128), (2**18, 16)) if _IS_NEW else ((2**22, 2048), (2**16, 256))


def unsigned_rows(platform: str, dtype: str, elements: int) -> int:
    """Up to how many rows a product is faster with its weight stored as unsigned numbers; 0: never.

    Example:
        >>> unsigned_rows("gpu", "int8", 2**24)
        0
    """
    if (platform, dtype) != ("cpu", "int8") or not processor.multiplies_vectors():
        return 0
    return next((rows for least, rows in _UNSIGNED if elements >= least), 0)


def unsigned_form(rows: int) -> Form:
    """The form of a product with a weight stored as unsigned numbers.

    Args:
        rows: of the activations.

    Example:
        >>> unsigned_form(1).rows, unsigned_form(60).rows, unsigned_form(65).rows
        (4, 64, 65)
    """
    return Form("unsigned", _filled(rows, _UNSIGNED_FILLED) or max(rows, _INT8.least_rows))


def keeps_unsigned(platform: str, elements: int) -> bool:
    """Whether an int8 weight is best kept as unsigned numbers, whatever the number of rows.

    Example:
        >>> keeps_unsigned("gpu", 2**24)
        False
    """
    return unsigned_rows(platform, "int8", elements) >= _MANY_ROWS


def most_merged(platform: str, dtype: str) -> int:
    """Elements up to which weights of products that read one input are put together; 0: never.

    Example:
        >>> most_merged("cpu", "int8") > 3 * 768 * 768, most_merged("cpu", "float32")
        (True, 0)
    """
    limits = limits_of(platform, dtype)
    return 0 if limits is None else limits.merged


def product_form(
    platform: str,
    dtype: str,
    rows: int,
    inner: int,
    columns: int,
    *,
    by_rows: bool,
    always: bool = False,
    shifts: bool = False,
) -> Form | None:
    """The fast form of a product [rows, inner]·[inner, columns], or None where none is known.

    Args:
        platform: `cpu`, `gpu` or `tpu`.
        dtype: of both matrices; int8 ones are added up in int32, the others in float32.
        rows: of the activations.
        inner: what is summed over.
        columns: of the result.
        by_rows: whether the weight may stand N×K: because it does, or because turning it costs nothing, as
            where it depends on parameters alone and is turned before the first call.
        always: it stands N×K in any case, where it may.
        shifts: whether it may be stored as unsigned numbers too, because that costs nothing.

    Example:
        >>> product_form("cpu", "int8", 1, 4096, 4096, by_rows=True)
        Form(weight_at='turned', rows=4)
        >>> product_form("cpu", "int8", 1, 4096, 4096, by_rows=False)
        Form(weight_at='plain', rows=4)
        >>> product_form("tpu", "int8", 1, 4096, 4096, by_rows=True) is None
        True
    """
    limits = limits_of(platform, dtype)
    if limits is None or rows == 0 or inner * columns < LEAST_WEIGHT:
        return None
    if not by_rows:
        return Form("plain", limits.lone_row) if rows == 1 < limits.lone_row else None
    padded = max(rows, limits.least_rows)
    if shifts and padded < columns and padded <= unsigned_rows(platform, dtype, inner * columns):
        return unsigned_form(rows)
    turned = padded if padded <= limits.turned_rows else _filled(rows, limits.filled)
    if turned is not None and inner < limits.turned_inner:
        return Form("rows", padded)
    if turned is not None and padded < columns:
        return Form("turned", turned)
    return Form("rows", padded) if limits.by_rows or always else None


def form_by_columns(
    platform: str, dtype: str, rows: int, inner: int, columns: int, *, shifts: bool = False
) -> Form | None:
    """The fast form of a product of activations stored [inner, rows] with a weight that may stand N×K.

    Args are those of `product_form`.

    Example:
        >>> form_by_columns("cpu", "int8", 16, 4096, 4096)
        Form(weight_at='turned', rows=16)
    """
    limits = limits_of(platform, dtype)
    if limits is None or not limits.by_columns or rows == 0 or inner * columns < LEAST_WEIGHT:
        return None
    padded = max(rows, limits.least_rows)
    if shifts and padded <= unsigned_rows(platform, dtype, inner * columns):
        return unsigned_form(rows)
    return Form("turned", padded)
