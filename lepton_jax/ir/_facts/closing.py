"""Facts of a value from what was claimed of it: what shape and dtype say, and what one fact implies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir._facts.dtypes import float_limits, holds_exactly, int_range, kind_of, scalar, static_size
from lepton_jax.ir._facts.lattice import CONSTANT_LIMIT, UNKNOWN, Band, Claims, Facts, elements, matrix


@cache
def _of_dtype(dtype: Any) -> Facts:
    if kind_of(dtype) not in ("bool", "int"):
        return UNKNOWN
    least, most = int_range(dtype)
    return Facts(least=least, most=most, no_nan=True, finite=True)


def of_aval(aval: Any) -> Facts:
    """What shape and dtype alone say."""
    return _of_dtype(aval.dtype) if _jax.is_array_aval(aval) else UNKNOWN


def close(aval: Any, claims: Mapping[str, Any]) -> Facts:
    """Facts of a value of this shape and dtype from what was claimed, with all that it implies.

    Claimed bounds of integers are those of exact arithmetic: when they leave the dtype's
    range the result may have wrapped, and nothing is said.
    """
    base = of_aval(aval)
    known: Claims = {}
    for key, claim in claims.items():
        if claim is not None and claim is not False and (key not in _SILENT or claim != _SILENT[key]):
            known[key] = claim
    if not known or not _jax.is_array_aval(aval):
        return base
    if known.get("splat") is not None:
        return splat_facts(known["splat"], aval.shape)
    kind = kind_of(aval.dtype)
    size = static_size(aval.shape)
    known.setdefault("least", base.least)
    known.setdefault("most", base.most)
    if kind == "other" or not size:
        known.pop("constant", None)
    if known.get("iota") is not None:
        _close_iota(known, aval)
    if len(aval.shape) > 1 or known.get("one_hot") is not None:
        _close_matrix(known, aval.shape)
    _CLOSE_RANGE[kind](known, aval.dtype)
    if size and known["least"] == known["most"] and kind in ("int", "bool"):
        return splat_facts(scalar(known["least"], aval.dtype), aval.shape)
    return Facts(**known)


_SILENT: Final[Mapping[str, Any]] = {"least": -math.inf, "most": math.inf, "uniform": frozenset()}


def splat_facts(splat: Any, shape: tuple[Any, ...]) -> Facts:
    """Facts of an array of this shape that holds one number."""
    number = np.asarray(splat)
    return _splat_facts(number.dtype, number.tobytes(), shape)


@lru_cache(maxsize=4096)
def _splat_facts(dtype: Any, number: bytes, shape: tuple[Any, ...]) -> Facts:
    splat = np.frombuffer(number, dtype)[0]
    kind, size = kind_of(dtype), static_size(shape)
    no_nan = bool(splat == splat)
    known: Claims = {"splat": splat, "no_nan": no_nan, "uniform": frozenset(range(len(shape)))}
    if kind in ("bool", "int"):
        known.update(least=int(splat), most=int(splat), nonzero=bool(splat != 0), finite=True)
    elif kind == "float" and no_nan:
        least, most = _flushed(float(splat), float(splat), dtype)
        known.update(least=least, most=most, finite=abs(float(splat)) < math.inf)
        known["nonzero"] = abs(float(splat)) >= float_limits(dtype)[1]
    elif kind == "complex":
        known.update(finite=bool(np.isfinite(splat)), nonzero=bool(splat != 0))
    if len(shape) > 1 and bool(splat == 0):
        known["lower"] = known["upper"] = known["diagonal"] = True
    if len(shape) > 1 and type(shape[-1]) is int and shape[-1] == shape[-2]:
        known["symmetric"] = known["exactly_symmetric"] = True
    if size is not None and 0 < size <= CONSTANT_LIMIT:
        known["constant"] = np.broadcast_to(splat, shape)
    return Facts(**known)


def _close_iota(known: Claims, aval: Any) -> None:
    dimension, start, step = known["iota"]
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
    band = known.get("band")
    square = len(shape) > 1 and type(shape[-1]) is int and shape[-1] == shape[-2]
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
    if square and known.get("diagonal"):
        known["exactly_symmetric"] = True
    if known.get("exactly_symmetric"):
        known["symmetric"] = True
    if band is not None or known.get("one_hot") is not None:
        known["least"], known["most"] = max(known["least"], 0), min(known["most"], 1)
        known["no_nan"] = True


def _close_int(known: Claims, dtype: Any) -> None:
    low, high = int_range(dtype)
    least, most = known["least"], known["most"]
    if least < low or most > high or least > most:
        least, most = low, high
    known["least"], known["most"] = int(least), int(most)
    known["no_nan"] = known["finite"] = True
    known["nonzero"] = known.get("nonzero", False) or least > 0 or most < 0


def _close_float(known: Claims, dtype: Any) -> None:
    greatest, tiny, _ = float_limits(dtype)
    least, most = float(known["least"]), float(known["most"])
    if known.get("finite"):
        known["no_nan"] = True
        least, most = max(least, -greatest), min(most, greatest)
    least, most = _flushed(least, most, dtype)
    least = least if least >= -greatest else -math.inf
    most = most if most <= greatest else math.inf
    known["least"], known["most"] = least, most
    known["finite"] = bool(known.get("no_nan")) and -math.inf < least and most < math.inf
    known["nonzero"] = known.get("nonzero", False) or least >= tiny or most <= -tiny


def _flushed(least: float, most: float, dtype: Any) -> tuple[float, float]:
    """Bounds that also hold when backends take numbers too small for a normal float as zero."""
    tiny = float_limits(dtype)[1]
    return 0.0 if 0 < least < tiny else least, 0.0 if -tiny < most < 0 else most


def _close_complex(known: Claims, dtype: Any) -> None:
    known["least"], known["most"] = -math.inf, math.inf
    known["no_nan"] = bool(known.get("no_nan") or known.get("finite"))


_CLOSE_RANGE: Final = {
    "bool": _close_int,
    "int": _close_int,
    "float": _close_float,
    "complex": _close_complex,
    "other": _close_complex,
}


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
