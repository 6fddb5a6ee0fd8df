"""The facts themselves: what they are, what one implies, and what two have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _jax

CONSTANT_LIMIT: Final = 4096
"""Contents of arrays with more elements than this are not looked at."""

Claims: TypeAlias = dict[str, Any]
"""Fields of `Facts` that were found out; `close` adds what they imply."""

Kind = Literal["bool", "int", "float", "complex", "other"]


class Band(NamedTuple):
    """The places of a matrix with `low <= column - row <= high` (None: no limit), or all others."""

    low: int | None
    high: int | None
    inside: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """What is known about the elements of a value, whatever the inputs are.

    A field that is None, False, empty or infinite says nothing. "Matrix" means the last two
    dimensions, and what is said of it holds for every index of the others. Zero is either zero.

    Attributes:
        constant: its contents, when known and of at most 4096 elements; read-only.
        splat: the number that every element is, to the bit (sign of zero included), as a scalar
            of the value's dtype.
        iota: (dimension, start, step): the element is `start + step * index` exactly.
        band: the matrix holds one (or true) in the band, and zero elsewhere.
        uniform: the dimensions along which all elements are the same number.
        identity: the matrix is square and the identity.
        diagonal: what is off the diagonal is zero (the matrix need not be square).
        lower: what is above the diagonal is zero.
        upper: what is below the diagonal is zero.
        symmetric: the matrix equals its transpose, up to rounding.
        exactly_symmetric: the matrix equals its transpose.
        permutation: the matrix is a permutation of the identity's rows.
        one_hot: a dimension along which at most one element is 1 and the others are 0.
        least: no element is less; an integer for integers and booleans. NaN is not spoken of.
        most: no element is greater; likewise.
        nonzero: no element equals zero.
        no_nan: no element is NaN.
        finite: no element is NaN or infinite.
    """

    constant: np.ndarray[Any, Any] | None = None
    splat: Any = None
    iota: tuple[int, int, int] | None = None
    band: Band | None = None
    uniform: frozenset[int] = frozenset()
    identity: bool = False
    diagonal: bool = False
    lower: bool = False
    upper: bool = False
    symmetric: bool = False
    exactly_symmetric: bool = False
    permutation: bool = False
    one_hot: int | None = None
    least: float = -math.inf
    most: float = math.inf
    nonzero: bool = False
    no_nan: bool = False
    finite: bool = False

    @property
    def is_zero(self) -> bool:
        """Whether every element equals zero, of either sign."""
        return self.splat is not None and bool(self.splat == 0)

    @property
    def is_one(self) -> bool:
        """Whether every element is one (or true)."""
        return self.splat is not None and bool(self.splat == 1)

    @property
    def is_positive_zero(self) -> bool:
        """Whether every element is zero with a plus sign (integers have no other)."""
        return self.is_zero and not _any_sign(self.splat)

    @property
    def is_negative_zero(self) -> bool:
        """Whether every element is minus zero."""
        return self.is_zero and _all_signs(self.splat)

    @property
    def nonnegative(self) -> bool:
        """Whether no element is less than zero (-0.0 and NaN may occur)."""
        return self.least >= 0

    @property
    def nonpositive(self) -> bool:
        """Whether no element is greater than zero (0.0 and NaN may occur)."""
        return self.most <= 0

    @property
    def positive(self) -> bool:
        """Whether every element is greater than zero (or NaN)."""
        return self.least >= 0 and self.nonzero

    @property
    def low(self) -> int | None:
        """The least value of an integer or boolean element; None for other dtypes."""
        return self.least if type(self.least) is int else None

    @property
    def high(self) -> int | None:
        """The greatest value of an integer or boolean element; None for other dtypes."""
        return self.most if type(self.most) is int else None

    def __str__(self) -> str:
        known = [(f.name, getattr(self, f.name)) for f in fields(self)]
        said = [f"{name}={v}" for name, v in known if v is not None and v is not False and v != frozenset()]
        return f"Facts({', '.join(said)})"


UNKNOWN: Final = Facts()


def _parts(splat: Any) -> tuple[float, ...]:
    number = complex(splat)
    return (number.real, number.imag) if np.iscomplexobj(splat) else (number.real,)


def _any_sign(splat: Any) -> bool:
    return any(math.copysign(1.0, part) < 0 for part in _parts(splat))


def _all_signs(splat: Any) -> bool:
    return all(math.copysign(1.0, part) < 0 for part in _parts(splat))


# Dtypes


@cache
def kind_of(dtype: Any) -> Kind:
    """What arithmetic a dtype has. Floats without infinities (most of 8 bits or less) are `other`."""
    if dtype is None or _jax.is_extended(dtype):
        return "other"
    if dtype == np.bool_:
        return "bool"
    if jnp.issubdtype(dtype, jnp.integer):
        return "int"
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return "complex"
    if jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize > 1:
        return "float"
    return "other"


@cache
def int_range(dtype: Any) -> tuple[int, int]:
    """The least and the greatest number of an integer dtype or bool."""
    if kind_of(dtype) == "bool":
        return 0, 1
    info = jnp.iinfo(dtype)
    return int(info.min), int(info.max)


@cache
def float_limits(dtype: Any) -> tuple[float, float, int]:
    """Of a floating dtype: the greatest number, the least normal one, and how many bits integers may have."""
    info = jnp.finfo(dtype)
    return float(info.max), float(info.tiny), int(info.nmant) + 1


@cache
def _of_dtype(dtype: Any) -> Facts:
    if kind_of(dtype) not in ("bool", "int"):
        return UNKNOWN
    least, most = int_range(dtype)
    return Facts(least=least, most=most, no_nan=True, finite=True)


def of_aval(aval: Any) -> Facts:
    """What shape and dtype alone say."""
    return _of_dtype(aval.dtype) if _jax.is_array_aval(aval) else UNKNOWN


def holds_exactly(dtype: Any, number: int) -> bool:
    """Whether a dtype holds this integer and all between it and zero."""
    kind = kind_of(dtype)
    if kind == "int":
        low, high = int_range(dtype)
        return low <= number <= high
    return kind == "float" and abs(number) <= 2 ** float_limits(dtype)[2]


def scalar(number: Any, dtype: Any) -> Any:
    """A number as a scalar of a dtype."""
    return np.asarray(number).astype(dtype)[()]


def same_bits(a: Any, b: Any) -> bool:
    """Whether two scalars are the same to the bit."""
    return np.asarray(a).dtype == np.asarray(b).dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def static_size(shape: tuple[Any, ...]) -> int | None:
    """The number of elements, or None when a dimension is symbolic."""
    return math.prod(shape) if all(type(d) is int for d in shape) else None


# What facts imply


def close(aval: Any, claims: Mapping[str, Any]) -> Facts:
    """Facts of a value of this shape and dtype from what was claimed, with all that it implies.

    Claimed bounds of integers are those of exact arithmetic: when they leave the dtype's
    range the result may have wrapped, and nothing is said.
    """
    base = of_aval(aval)
    if not claims or not _jax.is_array_aval(aval):
        return base
    kind = kind_of(aval.dtype)
    size = static_size(aval.shape)
    known: Claims = {"least": base.least, "most": base.most, **claims}
    if kind == "other" or size is None or size == 0:
        known.pop("constant", None)
    _close_iota(known, aval)
    _close_matrix(known, aval.shape)
    if known.get("splat") is not None:
        _close_splat(known, aval)
    _CLOSE_RANGE[kind](known, aval.dtype, size)
    splat = known.get("splat")
    if splat is not None:
        known["uniform"] = frozenset(range(len(aval.shape)))
        if known.get("constant") is None and size is not None and 0 < size <= CONSTANT_LIMIT:
            known["constant"] = np.broadcast_to(np.asarray(splat), aval.shape)
    return Facts(**known)


def _close_iota(known: Claims, aval: Any) -> None:
    iota = known.get("iota")
    if iota is None:
        return
    dimension, start, step = iota
    length, kind = aval.shape[dimension], kind_of(aval.dtype)
    last = start + step * (length - 1) if type(length) is int and length > 0 else None
    if last is None or not (holds_exactly(aval.dtype, start) and holds_exactly(aval.dtype, last)):
        known["iota"] = None
        return
    known["uniform"] = known.get("uniform", frozenset()) | (frozenset(range(len(aval.shape))) - {dimension})
    number = float if kind == "float" else int
    known["least"] = max(known["least"], number(min(start, last)))
    known["most"] = min(known["most"], number(max(start, last)))
    known["no_nan"] = True


def _close_matrix(known: Claims, shape: tuple[Any, ...]) -> None:
    splat, band = known.get("splat"), known.get("band")
    square = len(shape) > 1 and type(shape[-1]) is int and shape[-1] == shape[-2]
    if len(shape) > 1 and splat is not None and bool(splat == 0):
        known["lower"] = known["upper"] = True
    if band is not None and band.inside:
        known["lower"] = known.get("lower", False) or (band.high is not None and band.high <= 0)
        known["upper"] = known.get("upper", False) or (band.low is not None and band.low >= 0)
        known["identity"] = known.get("identity", False) or (square and band.low == band.high == 0)
        if band.low is not None and band.low == band.high and known.get("one_hot") is None:
            known["one_hot"] = len(shape) - 1
    if square and band is not None and band.low is not None and band.high == -band.low:
        known["exactly_symmetric"] = True
    if known.get("identity"):
        known["diagonal"] = known["permutation"] = True
        known["band"] = Band(0, 0)
    if known.get("permutation") and known.get("one_hot") is None:
        known["one_hot"] = len(shape) - 1
    if known.get("diagonal") or (known.get("lower") and known.get("upper")):
        known["diagonal"] = known["lower"] = known["upper"] = True
    if square and (known.get("diagonal") or splat is not None):
        known["exactly_symmetric"] = True
    if known.get("exactly_symmetric"):
        known["symmetric"] = True
    if band is not None or known.get("one_hot") is not None:
        known["least"], known["most"] = max(known["least"], 0), min(known["most"], 1)
        known["no_nan"] = True


def _close_splat(known: Claims, aval: Any) -> None:
    splat = known["splat"]
    kind = kind_of(aval.dtype)
    known["no_nan"] = bool(splat == splat)
    if kind in ("bool", "int"):
        known["least"] = known["most"] = int(splat)
    elif kind == "float" and known["no_nan"]:
        known["least"] = known["most"] = float(splat)
        known["nonzero"] = abs(float(splat)) >= float_limits(aval.dtype)[1]
    elif kind == "complex":
        known["finite"] = bool(np.isfinite(splat))
        known["nonzero"] = bool(splat != 0)


def _close_int(known: Claims, dtype: Any, size: int | None) -> None:
    low, high = int_range(dtype)
    least, most = known["least"], known["most"]
    if least < low or most > high or least > most:
        least, most = low, high
    known["least"], known["most"] = int(least), int(most)
    known["no_nan"] = known["finite"] = True
    known["nonzero"] = known.get("nonzero", False) or least > 0 or most < 0
    if least == most and size:
        known["splat"] = scalar(int(least), dtype)


def _close_float(known: Claims, dtype: Any, size: int | None) -> None:
    greatest, tiny, _ = float_limits(dtype)
    least, most = float(known["least"]), float(known["most"])
    if known.get("finite"):
        known["no_nan"] = True
        least, most = max(least, -greatest), min(most, greatest)
    least = least if least >= -greatest else -math.inf
    most = most if most <= greatest else math.inf
    known["least"], known["most"] = least, most
    known["finite"] = bool(known.get("no_nan")) and -math.inf < least and most < math.inf
    known["nonzero"] = known.get("nonzero", False) or least >= tiny or most <= -tiny


def _close_complex(known: Claims, dtype: Any, size: int | None) -> None:
    known["least"], known["most"] = -math.inf, math.inf
    known["no_nan"] = bool(known.get("no_nan") or known.get("finite"))


_CLOSE_RANGE: Final = {
    "bool": _close_int,
    "int": _close_int,
    "float": _close_float,
    "complex": _close_complex,
    "other": _close_complex,
}


def complement(band: Band) -> Band:
    """The places outside a band."""
    if not band.inside:
        return Band(band.low, band.high)
    if band.low is None and band.high is not None:
        return Band(band.high + 1, None)
    if band.high is None and band.low is not None:
        return Band(None, band.low - 1)
    return Band(band.low, band.high, inside=False)


# Two facts, and parts of facts


def meet(a: Facts, b: Facts) -> Facts:
    """What holds of a value that is one or the other."""
    if a is b:
        return a
    if a is UNKNOWN or b is UNKNOWN:
        return UNKNOWN
    constant = a.constant if _same_array(a.constant, b.constant) else None
    splat = a.splat if a.splat is not None and b.splat is not None and same_bits(a.splat, b.splat) else None
    return Facts(
        constant=constant,
        splat=splat,
        iota=a.iota if a.iota == b.iota else None,
        band=a.band if a.band == b.band else None,
        uniform=a.uniform & b.uniform,
        identity=a.identity and b.identity,
        diagonal=a.diagonal and b.diagonal,
        lower=a.lower and b.lower,
        upper=a.upper and b.upper,
        symmetric=a.symmetric and b.symmetric,
        exactly_symmetric=a.exactly_symmetric and b.exactly_symmetric,
        permutation=a.permutation and b.permutation,
        one_hot=a.one_hot if a.one_hot == b.one_hot else None,
        least=min(a.least, b.least),
        most=max(a.most, b.most),
        nonzero=a.nonzero and b.nonzero,
        no_nan=a.no_nan and b.no_nan,
        finite=a.finite and b.finite,
    )


def _same_array(a: Any, b: Any) -> bool:
    return a is not None and b is not None and a.shape == b.shape and a.tobytes() == b.tobytes()


def elements(facts: Facts) -> Claims:
    """What is said of each element for itself: true of any choice of the elements in any order."""
    if facts is UNKNOWN:
        return {}
    return {
        "splat": facts.splat,
        "least": facts.least,
        "most": facts.most,
        "nonzero": facts.nonzero,
        "no_nan": facts.no_nan,
        "finite": facts.finite,
    }


_MATRIX: Final = (
    "band",
    "identity",
    "diagonal",
    "lower",
    "upper",
    "symmetric",
    "exactly_symmetric",
    "permutation",
)


def matrix(facts: Facts) -> Claims:
    """What is said of the last two dimensions."""
    return {} if facts is UNKNOWN else {name: getattr(facts, name) for name in _MATRIX}


def everything(facts: Facts) -> Claims:
    """All that is said, for an operation that passes its operand on."""
    return {} if facts is UNKNOWN else {f.name: getattr(facts, f.name) for f in fields(Facts)}


def with_axis(facts: Facts, aval: Any) -> Facts:
    """Facts of values stacked along a new leading axis, from those of each."""
    if facts is UNKNOWN:
        return of_aval(aval)
    claims = elements(facts) | matrix(facts)
    claims["uniform"] = frozenset(d + 1 for d in facts.uniform)
    if facts.one_hot is not None:
        claims["one_hot"] = facts.one_hot + 1
    if facts.iota is not None:
        claims["iota"] = (facts.iota[0] + 1, *facts.iota[1:])
    return close(aval, claims)


def without_axis(facts: Facts, aval: Any) -> Facts:
    """Facts of a slice along the leading axis, from those of the whole; `aval` is the slice's."""
    if facts is UNKNOWN:
        return of_aval(aval)
    claims = elements(facts)
    if len(aval.shape) > 1:
        claims |= matrix(facts)
    claims["uniform"] = frozenset(d - 1 for d in facts.uniform if d)
    if facts.one_hot:
        claims["one_hot"] = facts.one_hot - 1
    if facts.iota is not None and facts.iota[0]:
        claims["iota"] = (facts.iota[0] - 1, *facts.iota[1:])
    return close(aval, claims)
