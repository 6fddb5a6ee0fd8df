"""Addition, multiplication and their kin, elementwise."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np

from lepton_jax.ir._facts import intervals as iv
from lepton_jax.ir._facts.dtypes import float_limits, int_range, kind_of, scalar
from lepton_jax.ir._facts.lattice import Claims, Facts, everything
from lepton_jax.ir._facts.registry import elementwise
from lepton_jax.ir.graph import Node, Value

_EXACT: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "add": operator.add,
    "add_any": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
}


def linear(a: Facts, b: Facts) -> Claims:
    """The structure of a sum, difference, maximum or minimum."""
    return {
        "uniform": a.uniform & b.uniform,
        "lower": a.lower and b.lower,
        "upper": a.upper and b.upper,
        "symmetric": a.symmetric and b.symmetric,
        "exactly_symmetric": a.exactly_symmetric and b.exactly_symmetric,
    }


def _transposes(a: Value, b: Value) -> bool:
    """Whether one value is written as the other with its last two dimensions exchanged."""
    return _is_transpose(a, b) or _is_transpose(b, a)


def _is_transpose(a: Value, b: Value) -> bool:
    if a.node is None or a.node.op != "transpose" or a.node.operands[0] is not b or b.ndim < 2:
        return False
    rank = b.ndim
    return tuple(a.node.params["permutation"]) == (*range(rank - 2), rank - 1, rank - 2)


def commutative(node: Node, a: Facts, b: Facts) -> Claims:
    """The same where the order of the operands does not matter."""
    claims = linear(a, b)
    if _transposes(node.operands[0], node.operands[1]):
        claims["exactly_symmetric"] = True
    return claims


def _exact_splat(node: Node, a: Facts, b: Facts) -> Any:
    """The result of splats, when it is exact in every way of computing it."""
    if a.splat is None or b.splat is None:
        return None
    dtype = node.result.dtype
    function = _EXACT[node.op]
    if kind_of(dtype) == "int":
        low, high = int_range(dtype)
        exact = function(int(a.splat), int(b.splat))
        return scalar(exact, dtype) if low <= exact <= high else None
    if kind_of(dtype) != "float" or not (a.finite and b.finite):
        return None
    with np.errstate(all="ignore"):
        result = function(a.splat, b.splat)
    if not math.isfinite(result) or np.asarray(result).dtype != dtype:
        return None
    tiny = float_limits(dtype)[1]
    if any(x != 0 and abs(float(x)) < tiny for x in (a.splat, b.splat, result)):
        return None
    exact_result = function(Fraction(float(a.splat)), Fraction(float(b.splat)))
    return result if Fraction(float(result)) == exact_result else None


def _shifted(a: Facts, b: Facts, sign: int) -> tuple[int, int, int] | None:
    """An iota plus or minus a whole number."""
    if a.iota is None or b.splat is None or not float(b.splat).is_integer():
        return None
    dimension, start, step = a.iota
    return dimension, start + sign * int(b.splat), step


def _no_infinite_difference(a: iv.Interval, b: iv.Interval) -> bool:
    """Whether a sum never adds infinities of different sign."""
    inf = math.inf
    return not (a[1] == inf and b[0] == -inf) and not (a[0] == -inf and b[1] == inf)


@elementwise("add", "add_any")
def _add(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    claims = commutative(node, a, b) | iv.claim(iv.total(iv.ends(a), iv.ends(b)), node.result.dtype)
    claims["no_nan"] = a.no_nan and b.no_nan and _no_infinite_difference(iv.ends(a), iv.ends(b))
    claims["iota"] = _shifted(a, b, 1) or _shifted(b, a, 1)
    claims["splat"] = _exact_splat(node, a, b)
    return claims


@elementwise("sub")
def _sub(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    dtype = node.result.dtype
    if node.operands[0] is node.operands[1] and a.finite:
        return {"splat": scalar(0, dtype)}
    difference = iv.total(iv.ends(a), iv.negated(iv.ends(b)))
    claims = linear(a, b) | iv.claim(difference, dtype)
    claims["no_nan"] = a.no_nan and b.no_nan and _no_infinite_difference(iv.ends(a), iv.negated(iv.ends(b)))
    claims["iota"] = _shifted(a, b, -1)
    claims["splat"] = _exact_splat(node, a, b)
    return claims


@elementwise("mul")
def _mul(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    claims = commutative(node, a, b)
    if node.operands[0] is node.operands[1]:
        return claims | square(node, a)
    claims.update(iv.claim(iv.product(iv.ends(a), iv.ends(b)), node.result.dtype))
    claims["lower"] = (a.lower and (b.finite or b.lower)) or (b.lower and a.finite)
    claims["upper"] = (a.upper and (b.finite or b.upper)) or (b.upper and a.finite)
    claims["no_nan"] = a.no_nan and b.no_nan and not (_meets_infinity(a, b) or _meets_infinity(b, a))
    claims["splat"] = _exact_splat(node, a, b)
    if kind_of(node.result.dtype) == "int" or (a.finite and b.finite):
        claims["splat"] = claims["splat"] if claims["splat"] is not None else _zero_times(node, a, b)
    if a.iota is not None and b.splat is not None and float(b.splat).is_integer():
        claims["iota"] = _scaled(a.iota, int(b.splat))
    elif b.iota is not None and a.splat is not None and float(a.splat).is_integer():
        claims["iota"] = _scaled(b.iota, int(a.splat))
    return claims


def _zero_times(node: Node, a: Facts, b: Facts) -> Any:
    """Zero times integers, or times finite numbers of one sign, which gives the zero its sign."""
    dtype = node.result.dtype
    if not (a.is_zero or b.is_zero):
        return None
    if kind_of(dtype) == "int":
        return scalar(0, dtype)
    zero, other = (a, b) if a.is_zero else (b, a)
    if other.least > 0:
        return zero.splat
    return scalar(-float(zero.splat), dtype) if other.most < 0 else None


def _meets_infinity(a: Facts, b: Facts) -> bool:
    """Whether zero in `a` may meet infinity in `b`."""
    return not a.nonzero and iv.infinite(b)


def _scaled(iota: tuple[int, int, int], factor: int) -> tuple[int, int, int] | None:
    """An iota times a whole number; zero would lose the sign of what it was."""
    dimension, start, step = iota
    return (dimension, start * factor, step * factor) if factor else None


@elementwise("square")
def _square(node: Node, facts: Sequence[Facts]) -> Claims:
    return _unary_structure(facts[0]) | square(node, facts[0])


def square(node: Node, a: Facts) -> Claims:
    """Elements times themselves."""
    claims = iv.claim(iv.power(iv.ends(a), 2), node.result.dtype)
    return claims | {"no_nan": a.no_nan, "lower": a.lower, "upper": a.upper}


def _unary_structure(a: Facts, exact: bool = True) -> Claims:
    """The structure of a function that takes zero to zero."""
    return {"lower": a.lower, "upper": a.upper, **_pointwise_structure(a, exact)}


def _pointwise_structure(a: Facts, exact: bool = True) -> Claims:
    """The structure of any function of each element."""
    return {
        "uniform": a.uniform,
        "symmetric": a.symmetric if exact else a.exactly_symmetric,
        "exactly_symmetric": exact and a.exactly_symmetric,
    }


@elementwise("neg")
def _neg(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    claims = _unary_structure(a)
    claims.update(no_nan=a.no_nan, nonzero=a.nonzero)
    claims["least"], claims["most"] = iv.negated(iv.ends(a))
    if a.iota is not None:
        dimension, start, step = a.iota
        claims["iota"] = (dimension, -start, -step)
    if a.splat is not None and kind_of(node.result.dtype) == "float":
        claims["splat"] = -a.splat
    return claims


@elementwise("abs")
def _abs(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    claims = _unary_structure(a)
    claims.update(no_nan=a.no_nan, nonzero=a.nonzero, finite=a.finite)
    claims["least"], claims["most"] = iv.magnitude(iv.ends(a))
    if a.splat is not None and kind_of(node.result.dtype) == "float":
        claims["splat"] = abs(a.splat)
    return claims


@elementwise("sign")
def _sign(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    least = 1 if a.positive else 0 if a.nonnegative else -1
    most = -1 if a.nonpositive and a.nonzero else 0 if a.nonpositive else 1
    claims = _unary_structure(a) | {"least": least, "most": most, "no_nan": a.no_nan, "nonzero": a.nonzero}
    claims["symmetric"] = a.exactly_symmetric
    return claims


@elementwise("div")
def _div(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    if kind_of(node.result.dtype) == "int":
        return _int_div(a, b)
    claims: Claims = {"uniform": a.uniform & b.uniform}
    claims["lower"] = a.lower and b.nonzero and b.no_nan
    claims["upper"] = a.upper and b.nonzero and b.no_nan
    claims["symmetric"] = a.symmetric and b.splat is not None
    claims["exactly_symmetric"] = a.exactly_symmetric and b.exactly_symmetric
    defined = (a.nonzero or b.nonzero) and not (iv.infinite(a) and iv.infinite(b))
    claims["no_nan"] = a.no_nan and b.no_nan and defined
    if b.nonzero and (b.nonnegative or b.nonpositive):
        claims.update(iv.claim(iv.quotient(iv.ends(a), iv.ends(b)), node.result.dtype))
    return claims


def _int_div(a: Facts, b: Facts) -> Claims:
    """Division that rounds towards zero; by zero it is what the backend says."""
    claims: Claims = {
        "uniform": a.uniform & b.uniform,
        "exactly_symmetric": a.exactly_symmetric and b.exactly_symmetric,
    }
    if b.least <= 0 <= b.most:
        return claims
    corners = [_truncated(int(x), int(y)) for x in iv.ends(a) for y in iv.ends(b)]
    return claims | {"least": min(corners), "most": max(corners)}


def _truncated(x: int, y: int) -> int:
    quotient = abs(x) // abs(y)
    return quotient if (x < 0) == (y < 0) else -quotient


@elementwise("rem")
def _rem(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    claims: Claims = {
        "uniform": a.uniform & b.uniform,
        "exactly_symmetric": a.exactly_symmetric and b.exactly_symmetric,
    }
    claims["least"], claims["most"] = min(a.least, 0), max(a.most, 0)
    if kind_of(node.result.dtype) == "float":
        claims["no_nan"] = a.finite and b.no_nan and b.nonzero
        return claims
    if not b.least <= 0 <= b.most:
        limit = int(max(abs(b.least), abs(b.most))) - 1
        claims.update(least=max(claims["least"], -limit), most=min(claims["most"], limit))
    return claims


@elementwise("integer_pow")
def _integer_pow(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    exponent, dtype = node.params["y"], node.result.dtype
    if exponent == 0:
        return {"splat": scalar(1, dtype)}
    if exponent == 1:
        return everything(a)
    if exponent > 0:
        claims = _unary_structure(a) | iv.claim(iv.power(iv.ends(a), exponent), dtype)
        return {**claims, "no_nan": a.no_nan}
    if kind_of(dtype) != "float":
        return _pointwise_structure(a)
    claims = {"no_nan": a.no_nan, "uniform": a.uniform, "exactly_symmetric": a.exactly_symmetric}
    if exponent % 2 == 0 or a.positive:
        claims["least"] = 0.0
    return claims


@elementwise("pow")
def _pow(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    claims: Claims = {"uniform": a.uniform & b.uniform}
    if a.positive and kind_of(node.result.dtype) == "float":
        claims.update(least=0.0, no_nan=a.no_nan and b.no_nan)
    return claims
