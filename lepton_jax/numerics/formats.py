"""Number formats: what values an element of so many bits can have, and how JAX holds its code.

A format says nothing about scales being shared by rows, groups or tensors: that is a
`lepton_jax.numerics.quantize.Scheme`. Codes of formats with a type in JAX that computes everywhere (int8, the
two float8) have that type; codes of the others are int8 integers, or uint8 bit patterns or indices.
`lepton_jax.numerics.packing` stores them in `bits` bits each.

Sources: `fp8_e4m3` and `fp8_e5m2`: Micikevicius et al., "FP8 formats for deep learning", 2022 (arXiv
2209.05433); `fp4_e2m1`, `fp6_e2m3`, `fp6_e3m2` and everything that begins with `mx`: the OCP Microscaling
Formats (MX) Specification, version 1.0, 2023; `nf4`: Dettmers et al., "QLoRA", 2023 (arXiv 2305.14314,
appendix E).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal

import jax.numpy as jnp
import numpy as np

Kind = Literal["integer", "float", "table"]


@dataclass(frozen=True)
class Format:
    """A number format.

    Attributes:
        name: the name under which `get_format` finds it.
        bits: bits of an element's code, without its share of a scale.
        kind: `integer`: the code is the value, two's complement; `float`: sign, exponent and mantissa, no
            infinity, NaN only in float8; `table`: the code is an index into `table`.
        dtype: of codes in computation: int8 for integers, float8_e4m3fn or float8_e5m2 for the formats that
            are these, uint8 bit patterns or indices for the others.
        block: neighbours that share a power of two as their scale (microscaling, 32), or None.
        exponent_bits: of `float` formats, with the IEEE bias `2**(exponent_bits - 1) - 1`.
        mantissa_bits: of `float` formats.
        table: the values of a `table` format, ascending.
    """

    name: str
    bits: int
    kind: Kind
    dtype: np.dtype[Any]
    block: int | None = None
    exponent_bits: int = 0
    mantissa_bits: int = 0
    table: tuple[float, ...] = ()

    @property
    def levels(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """All finite values, ascending, each once (zero has one entry); float32, read-only."""
        return _levels(self)

    @property
    def low(self) -> float:
        """The least value."""
        return float(self.levels[0])

    @property
    def high(self) -> float:
        """The greatest value."""
        return float(self.levels[-1])

    @property
    def exponent(self) -> int:
        """The exponent of the greatest value, `floor(log2(high))`: emax of the MX specification."""
        return math.frexp(self.high)[1] - 1

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """What scales are held in: float8_e8m0fnu (powers of two) with a `block`, otherwise float32."""
        found: np.dtype[Any] = np.dtype(jnp.float8_e8m0fnu if self.block else jnp.float32)
        return found

    @property
    def signed_codes(self) -> bool:
        """Whether codes are two's complement integers; otherwise bit patterns or indices (see `unpack`)."""
        return self.kind == "integer"

    def __str__(self) -> str:
        return self.name


@cache
def _levels(form: Format) -> np.ndarray[Any, np.dtype[np.float32]]:
    match form.kind:
        case "integer":
            values = np.arange(-(2 ** (form.bits - 1)), 2 ** (form.bits - 1), dtype=np.float32)
        case "table":
            values = np.array(form.table, np.float32)
        case "float":
            values = _float_levels(form)
    values.setflags(write=False)
    return values


def _float_levels(form: Format) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Values of a float format: by the type where numpy has it, since both float8 keep codes for NaN."""
    if form.bits == 8:
        every = np.arange(256, dtype=np.uint8).view(form.dtype).astype(np.float32)
        return np.unique(every[np.isfinite(every)] + 0.0)
    magnitudes = np.arange(2 ** (form.bits - 1))
    exponents, mantissas = np.divmod(magnitudes, 2**form.mantissa_bits)
    bias = 2 ** (form.exponent_bits - 1) - 1
    normal = exponents > 0
    steps = 2.0 ** (np.where(normal, exponents, 1) - bias - form.mantissa_bits)
    values = steps * (mantissas + normal * 2**form.mantissa_bits)
    return np.unique(np.concatenate([-values, values]) + 0.0).astype(np.float32)


# The quantiles of the normal distribution that QLoRA publishes, to all its digits.
_NF4: Final = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def _integer(name: str, bits: int, block: int | None = None) -> Format:
    return Format(name, bits, "integer", np.dtype(np.int8), block)


def _float(
    name: str, exponent: int, mantissa: int, block: int | None = None, dtype: Any = np.uint8
) -> Format:
    return Format(name, 1 + exponent + mantissa, "float", np.dtype(dtype), block, exponent, mantissa)


_ALL: Final = (
    *(_integer(f"int{bits}", bits) for bits in (8, 7, 6, 5, 4, 3, 2)),
    _float("fp8_e4m3", 4, 3, dtype=jnp.float8_e4m3fn),
    _float("fp8_e5m2", 5, 2, dtype=jnp.float8_e5m2),
    _float("fp6_e2m3", 2, 3),
    _float("fp6_e3m2", 3, 2),
    _float("fp4_e2m1", 2, 1),
    Format("nf4", 4, "table", np.dtype(np.uint8), table=_NF4),
    _float("mxfp8_e4m3", 4, 3, 32, jnp.float8_e4m3fn),
    _float("mxfp8_e5m2", 5, 2, 32, jnp.float8_e5m2),
    _float("mxfp6_e2m3", 2, 3, 32),
    _float("mxfp6_e3m2", 3, 2, 32),
    _float("mxfp4", 2, 1, 32),
    _integer("mxint8", 8, 32),
)

FORMATS: Final[Mapping[str, Format]] = MappingProxyType({form.name: form for form in _ALL})
"""Every format by its name."""

ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "e4m3": "fp8_e4m3",
        "e5m2": "fp8_e5m2",
        "fp8": "fp8_e4m3",
        "float8_e4m3fn": "fp8_e4m3",
        "float8_e5m2": "fp8_e5m2",
        "fp4": "fp4_e2m1",
        "mxfp8": "mxfp8_e4m3",
        "mxfp6": "mxfp6_e2m3",
    }
)
"""Other names that `get_format` knows."""


def get_format(name: str | Format) -> Format:
    """The format of a name or alias; a `Format` is returned as it is.

    Raises:
        ValueError: there is no such format; the message lists all.

    Example:
        >>> get_format("e4m3").high
        448.0
    """
    if isinstance(name, Format):
        return name
    found = FORMATS.get(ALIASES.get(name, name))
    if found is None:
        known = ", ".join([*FORMATS, *ALIASES])
        raise ValueError(f"there is no number format {name!r}; there are {known}")
    return found
