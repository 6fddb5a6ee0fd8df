"""The facts themselves: what they are, parts of them, and what two have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from lepton_jax.ir._facts.dtypes import same_bits

CONSTANT_LIMIT: Final = 4096
"""Contents of arrays with more elements than this are not looked at."""

Claims: TypeAlias = dict[str, Any]
"""Fields of `Facts` that were found out; `close` adds what they imply."""


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

_CLAIMS: Final = tuple(f.name for f in fields(Facts) if f.name not in ("least", "most", "uniform"))


def _parts(splat: Any) -> tuple[float, ...]:
    number = complex(splat)
    return (number.real, number.imag) if np.iscomplexobj(splat) else (number.real,)


def _any_sign(splat: Any) -> bool:
    return any(math.copysign(1.0, part) < 0 for part in _parts(splat))


def _all_signs(splat: Any) -> bool:
    return all(math.copysign(1.0, part) < 0 for part in _parts(splat))


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


def says_more(a: Facts, b: Facts) -> bool:
    """Whether `a` says something that `b` does not."""
    if a is b or a is UNKNOWN:
        return False
    if a.least > b.least or a.most < b.most or not a.uniform <= b.uniform:
        return True
    return any(_is_said(getattr(a, name)) and not _is_said(getattr(b, name)) for name in _CLAIMS)


def _is_said(claim: Any) -> bool:
    return claim is not None and claim is not False


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
