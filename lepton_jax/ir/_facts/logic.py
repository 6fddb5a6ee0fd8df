"""Comparisons, logic, and conversion between dtypes, elementwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from lepton_jax.ir._facts import intervals as iv
from lepton_jax.ir._facts.dtypes import float_limits, holds_exactly, int_range, kind_of, scalar
from lepton_jax.ir._facts.lattice import Band, Claims, Facts, complement, everything
from lepton_jax.ir._facts.registry import elementwise
from lepton_jax.ir.graph import Node


@elementwise("eq", "ne", "lt", "le", "gt", "ge")
def _compare(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    known = _verdict(node.op, a, b, node.operands[0] is node.operands[1])
    if known is not None:
        return {"splat": np.bool_(known)}
    claims: Claims = {"uniform": a.uniform & b.uniform}
    claims["exactly_symmetric"] = a.exactly_symmetric and b.exactly_symmetric
    if node.result.ndim > 1:
        claims["band"] = _band(node.op, a, b, node.result.ndim)
    if node.op == "eq":
        claims["one_hot"] = _one_hot(a, b)
    return claims


def _verdict(op: str, a: Facts, b: Facts, same: bool) -> bool | None:
    """What a comparison always says, or None."""
    if op in ("ne", "ge", "gt"):
        # NaN makes all but `ne` false, so ge and gt are lt and le with exchanged operands.
        if op == "ne":
            equal = _verdict("eq", a, b, same)
            return None if equal is None else not equal
        return _verdict({"ge": "le", "gt": "lt"}[op], b, a, same)
    ordered = a.no_nan and b.no_nan
    if op == "eq":
        if a.most < b.least or b.most < a.least or _only_one_is_zero(a, b):
            return False
        equal = a.least == a.most == b.least == b.most
        return True if ordered and (same or equal) else None
    if op == "lt":
        if same or a.least >= b.most:
            return False
        return True if ordered and a.most < b.least else None
    if a.least > b.most:
        return False
    return True if ordered and (same or a.most <= b.least) else None


def _only_one_is_zero(a: Facts, b: Facts) -> bool:
    return (a.is_zero and b.nonzero) or (b.is_zero and a.nonzero)


# The same comparison with its operands exchanged, and the one that holds where it does not (or NaN is met).
MIRRORED: Final = {"eq": "eq", "ne": "ne", "lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
NEGATED: Final = {"eq": "ne", "ne": "eq", "lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


def _band(op: str, a: Facts, b: Facts, rank: int) -> Band | None:
    """The band of a matrix that compares row numbers with column numbers."""
    if a.iota is None or b.iota is None:
        return None
    if a.iota[0] == rank - 1:
        a, b, op = b, a, MIRRORED[op]
    if a.iota is None or b.iota is None or (a.iota[0], b.iota[0]) != (rank - 2, rank - 1):
        return None
    (_, row, step), (_, column, other) = a.iota, b.iota
    if step != other or abs(step) != 1:
        return None
    # row + step·i OP column + step·j, as a condition on j - i
    shift = (row - column) * step
    if step < 0:
        op = MIRRORED[op]
    return {
        "eq": Band(shift, shift),
        "ne": Band(shift, shift, inside=False),
        "ge": Band(None, shift),
        "gt": Band(None, shift - 1),
        "le": Band(shift, None),
        "lt": Band(shift + 1, None),
    }[op]


def _one_hot(a: Facts, b: Facts) -> int | None:
    """The dimension along which an iota meets one number."""
    for iota, other in ((a.iota, b), (b.iota, a)):
        if iota is not None and iota[2] != 0 and iota[0] in other.uniform:
            return iota[0]
    return None


@elementwise("not")
def _not(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    claims: Claims = {"uniform": a.uniform, "exactly_symmetric": a.exactly_symmetric}
    if kind_of(node.result.dtype) != "bool":
        if int_range(node.result.dtype)[0] < 0:
            claims.update(least=-1 - a.most, most=-1 - a.least)
        return claims
    claims.update(least=1 - a.most, most=1 - a.least)
    claims["band"] = None if a.band is None else complement(a.band)
    return claims


@elementwise("and")
def _and(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    if a.is_one and kind_of(node.result.dtype) == "bool":
        return everything(b)
    if b.is_one and kind_of(node.result.dtype) == "bool":
        return everything(a)
    claims: Claims = {
        "uniform": a.uniform & b.uniform,
        "lower": a.lower or b.lower,
        "upper": a.upper or b.upper,
        "exactly_symmetric": a.exactly_symmetric and b.exactly_symmetric,
        "band": _intersection(a.band, b.band),
    }
    limits = [f.most for f in facts if f.nonnegative]
    if limits:
        claims.update(least=0, most=min(limits))
    if kind_of(node.result.dtype) == "bool":
        claims["one_hot"] = a.one_hot if a.one_hot is not None else b.one_hot
    return claims


def _intersection(a: Band | None, b: Band | None) -> Band | None:
    if a is None or b is None or not (a.inside and b.inside):
        return None
    lows = [x.low for x in (a, b) if x.low is not None]
    highs = [x.high for x in (a, b) if x.high is not None]
    return Band(max(lows, default=None), min(highs, default=None))


@elementwise("or", "xor")
def _or(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    claims: Claims = {
        "uniform": a.uniform & b.uniform,
        "lower": a.lower and b.lower,
        "upper": a.upper and b.upper,
        "exactly_symmetric": a.exactly_symmetric and b.exactly_symmetric,
    }
    if a.nonnegative and b.nonnegative:
        bits = max(int(a.most).bit_length(), int(b.most).bit_length())
        claims.update(least=0, most=2**bits - 1)
        if node.op == "or":
            claims["least"] = max(a.least, b.least)
    return claims


@elementwise("shift_right_logical", "shift_right_arithmetic")
def _shift_right(node: Node, facts: Sequence[Facts]) -> Claims:
    return {"least": 0, "most": facts[0].most} if facts[0].nonnegative else {}


@elementwise("population_count", "clz")
def _count_bits(node: Node, facts: Sequence[Facts]) -> Claims:
    return {"least": 0, "most": int(int_range(node.result.dtype)[1]).bit_length() + 1}


@elementwise("is_finite")
def _is_finite(node: Node, facts: Sequence[Facts]) -> Claims:
    if facts[0].finite:
        return {"splat": np.bool_(True)}
    return {"uniform": facts[0].uniform, "exactly_symmetric": facts[0].exactly_symmetric}


@elementwise("convert_element_type", "reduce_precision")
def _convert(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    old, new = node.operands[0].dtype, node.result.dtype
    if node.op == "convert_element_type" and old == new:
        return everything(a)
    claims: Claims = {
        "lower": a.lower,
        "upper": a.upper,
        "uniform": a.uniform,
        "exactly_symmetric": a.exactly_symmetric,
        "band": a.band,
        "identity": a.identity,
        "permutation": a.permutation,
        "one_hot": a.one_hot,
        "splat": _converted(a, old, new),
    }
    if node.op == "reduce_precision":
        claims.update(splat=None, no_nan=a.no_nan)
        claims.update(least=0.0 if a.nonnegative else -math.inf, most=0.0 if a.nonpositive else math.inf)
        return claims
    return claims | (_from_float(a, old, new) if kind_of(old) == "float" else _from_integer(a, new))


def _converted(a: Facts, old: Any, new: Any) -> Any:
    """A number in another dtype; None where backends differ (out of range, or too small)."""
    if a.splat is None:
        return None
    kind = kind_of(new)
    if kind_of(old) == "float":
        number = float(a.splat)
        if number != 0 and not a.nonzero and number == number:
            return None  # too small to be told from zero everywhere
        if kind == "int":
            low, high = int_range(new)
            return scalar(int(number), new) if math.isfinite(number) and low <= int(number) <= high else None
    if kind == "bool":
        return np.bool_(bool(a.splat != 0))
    if kind == "int":
        low, high = int_range(new)
        return scalar((int(a.splat) - low) % (high - low + 1) + low, new)
    with np.errstate(all="ignore"):
        result = scalar(a.splat, new)
    return None if a.splat != 0 and abs(float(result)) < float_limits(new)[1] else result


def _from_integer(a: Facts, new: Any) -> Claims:
    kind = kind_of(new)
    if kind == "bool":
        return {"least": 1 if a.nonzero else 0, "most": 0 if a.is_zero else 1}
    if kind == "float":
        exact = holds_exactly(new, int(a.least)) and holds_exactly(new, int(a.most))
        bounds = {"least": a.least, "most": a.most} if exact else iv.claim(iv.ends(a), new)
        return {"nonzero": a.nonzero, "iota": a.iota, "no_nan": True, **bounds}
    low, high = int_range(new)
    if a.least < low or a.most > high:
        return {}
    return {"least": a.least, "most": a.most, "nonzero": a.nonzero, "iota": a.iota}


def _from_float(a: Facts, old: Any, new: Any) -> Claims:
    kind = kind_of(new)
    if kind == "bool":
        return {"least": 1 if a.nonzero else 0, "most": 0 if a.is_zero else 1}
    if kind == "int":
        low, high = int_range(new)
        if not (a.finite and low < a.least and a.most < high):
            return {}
        return {"least": math.trunc(a.least), "most": math.trunc(a.most), "iota": a.iota}
    (most, tiny, bits), (old_most, old_tiny, old_bits) = float_limits(new), float_limits(old)
    if most >= old_most and tiny <= old_tiny and bits >= old_bits:
        return {"least": a.least, "most": a.most, "nonzero": a.nonzero, "no_nan": a.no_nan, "iota": a.iota}
    return {"no_nan": a.no_nan, "iota": a.iota, **iv.claim(iv.ends(a), new)}
