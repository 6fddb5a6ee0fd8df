"""Elementary functions, elementwise."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Final

from lepton_jax.ir._facts import intervals as iv
from lepton_jax.ir._facts.dtypes import float_limits
from lepton_jax.ir._facts.lattice import Claims, Facts
from lepton_jax.ir._facts.registry import elementwise
from lepton_jax.ir.graph import Node


def _shape(a: Facts, keeps_zero: bool = False) -> Claims:
    """The structure of a function; two equal arguments may round differently, in a loop's tail for one."""
    claims: Claims = {"uniform": a.uniform, "symmetric": a.exactly_symmetric}
    if keeps_zero:
        claims.update(lower=a.lower, upper=a.upper)
    return claims


_GREATEST: Final = sys.float_info.max

# Growing functions that take zero to zero, with the bounds of their values.
_THROUGH_ZERO: Final[dict[str, tuple[Callable[[float], float], float]]] = {
    "tanh": (math.tanh, 1.0),
    "erf": (math.erf, 1.0),
    "atan": (math.atan, math.pi / 2),
    "asinh": (math.asinh, math.inf),
    "sinh": (math.sinh, math.inf),
    "expm1": (math.expm1, math.inf),
    "cbrt": (math.cbrt, math.inf),
}


@elementwise(*_THROUGH_ZERO)
def _through_zero(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    function, limit = _THROUGH_ZERO[node.op]
    low, high = iv.mapped(function, (max(a.least, -_GREATEST), min(a.most, _GREATEST)))
    low = low if a.least > -math.inf else -1.0 if node.op == "expm1" else -limit
    high = high if a.most < math.inf else limit
    return _shape(a, True) | iv.claim((low, high), node.result.dtype) | {"no_nan": a.no_nan}


@elementwise("exp", "exp2")
def _exp(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    function = math.exp if node.op == "exp" else lambda x: 2.0**x
    # A large argument's rounding error is the result's relative error, so only near ones are mapped.
    low = function(a.least) if -500 < a.least < 500 else 0.0
    high = iv.mapped(function, (0.0, a.most))[1] if a.most < 500 else math.inf
    return _shape(a) | iv.claim((low, high), node.result.dtype) | {"no_nan": a.no_nan}


@elementwise("logistic")
def _logistic(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    return _shape(a) | {"least": 0.0, "most": 1.0, "no_nan": a.no_nan}


@elementwise("log", "log2")
def _log(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    claims = _shape(a) | {"no_nan": a.no_nan and a.nonnegative}
    # The logarithms of a dtype's numbers are small; only nearness to zero's endlessness matters.
    limit = 2.0 * math.log2(float_limits(node.operands[0].dtype)[0]) + 64
    claims["least"] = -limit if a.least > 0 and a.nonzero else -math.inf
    claims["most"] = limit if a.most < math.inf else math.inf
    return claims


@elementwise("log1p")
def _log1p(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    claims = _shape(a, True) | {"no_nan": a.no_nan and a.least >= -1}
    limit = 2.0 * math.log2(float_limits(node.operands[0].dtype)[0]) + 64
    if a.nonnegative:
        claims["least"] = 0.0
    if a.nonpositive:
        claims["most"] = 0.0
    elif a.most < math.inf:
        claims["most"] = limit
    return claims


@elementwise("sqrt")
def _sqrt(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    claims = _shape(a, True) | {"exactly_symmetric": a.exactly_symmetric}
    claims.update(iv.claim((_root(a.least), _root(a.most)), node.result.dtype))
    return claims | {"no_nan": a.no_nan and a.nonnegative, "nonzero": a.positive}


def _root(x: float) -> float:
    return math.sqrt(x) if x > 0 else 0.0


@elementwise("rsqrt")
def _rsqrt(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    claims = _shape(a) | {"no_nan": a.no_nan and a.nonnegative}
    if a.positive:
        tiny = float_limits(node.result.dtype)[1]
        high = math.inf if a.least < tiny else 1 / _root(a.least)
        low = 0.0 if a.most == math.inf else 1 / _root(a.most)
        claims.update(iv.claim((low, high), node.result.dtype))
    return claims


@elementwise("sin", "cos")
def _wave(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    claims = _shape(a, node.op == "sin")
    return claims | {"least": -1.0 - 2.0**-5, "most": 1.0 + 2.0**-5, "no_nan": a.finite}


@elementwise("tan", "asin", "atanh", "erf_inv")
def _odd(node: Node, facts: Sequence[Facts]) -> Claims:
    return _shape(facts[0], True)


@elementwise("erfc", "acos", "cosh")
def _positive(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    return _shape(a) | {"least": 0.0, "no_nan": a.no_nan and node.op != "acos"}


@elementwise("atan2")
def _atan2(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    return {"least": -3.2, "most": 3.2, "no_nan": a.no_nan and b.no_nan, "uniform": a.uniform & b.uniform}


@elementwise("floor", "ceil", "round")
def _whole(node: Node, facts: Sequence[Facts]) -> Claims:
    (a,) = facts
    claims: Claims = {"uniform": a.uniform, "exactly_symmetric": a.exactly_symmetric, "no_nan": a.no_nan}
    claims.update(lower=a.lower, upper=a.upper, iota=a.iota)
    claims["least"] = math.floor(a.least) if math.isfinite(a.least) else a.least
    claims["most"] = math.ceil(a.most) if math.isfinite(a.most) else a.most
    if a.splat is not None and a.finite and float(a.splat).is_integer():
        claims["splat"] = a.splat
    return claims
