"""Choosing one of several elements: maximum, minimum, clamp, select."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lepton_jax.ir._facts.arithmetic import commutative
from lepton_jax.ir._facts.dtypes import kind_of, same_bits
from lepton_jax.ir._facts.lattice import Band, Claims, Facts, complement, elements, everything, meet
from lepton_jax.ir._facts.logic import MIRRORED, NEGATED
from lepton_jax.ir._facts.registry import elementwise
from lepton_jax.ir.graph import Node


@elementwise("max")
def _max(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    claims = commutative(node, a, b)
    claims.update(least=max(a.least, b.least), most=max(a.most, b.most))
    claims["no_nan"] = a.no_nan and b.no_nan
    claims["nonzero"] = (a.nonzero and b.nonzero) or a.least > 0 or b.least > 0
    if b.most <= a.least and b.no_nan:
        return claims | _winner(a, b)
    return claims | _winner(b, a) if a.most <= b.least and a.no_nan else claims


@elementwise("min")
def _min(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    claims = commutative(node, a, b)
    claims.update(least=min(a.least, b.least), most=min(a.most, b.most))
    claims["no_nan"] = a.no_nan and b.no_nan
    claims["nonzero"] = (a.nonzero and b.nonzero) or a.most < 0 or b.most < 0
    if a.most <= b.least and b.no_nan:
        return claims | _winner(a, b)
    return claims | _winner(b, a) if b.most <= a.least and a.no_nan else claims


def _winner(a: Facts, b: Facts) -> Claims:
    """The result is `a`, but where both are zero its sign may be that of `b`."""
    claims = everything(a)
    if (
        a.nonzero
        or b.nonzero
        or (a.splat is not None and b.splat is not None and same_bits(a.splat, b.splat))
    ):
        return claims
    return claims | {"splat": None, "constant": None}


@elementwise("clamp")
def _clamp(node: Node, facts: Sequence[Facts]) -> Claims:
    low, x, high = facts
    claims = {
        "least": min(max(x.least, low.least), high.least),
        "most": min(max(x.most, low.most), high.most),
        "no_nan": low.no_nan and x.no_nan and high.no_nan,
        "uniform": low.uniform & x.uniform & high.uniform,
    }
    same = low.exactly_symmetric and high.exactly_symmetric
    return claims | {"symmetric": same and x.symmetric, "exactly_symmetric": same and x.exactly_symmetric}


@elementwise("select_n")
def _select(node: Node, facts: Sequence[Facts]) -> Claims:
    which, *cases = facts
    if which.splat is not None and 0 <= int(which.splat) < len(cases):
        return everything(cases[int(which.splat)])
    if len(cases) == 2:
        cases = [_known_where(node, case, k) for k, case in enumerate(cases)]
    return _select_between(which, cases)


def _known_where(node: Node, case: Facts, taken: int) -> Facts:
    """What is known of the elements of a case that are taken, if the predicate compares this case."""
    test, value = node.operands[0].node, node.operands[1 + taken]
    if test is None or not test.operands or value.shape != node.result.shape:
        return case
    if test.op == "is_finite" and test.operands[0] is value and taken:
        return replace(case, finite=True, no_nan=True)
    if test.op not in NEGATED:
        return case
    op = test.op if taken else NEGATED[test.op]
    left, right = test.operands
    if left is right is value:
        return replace(case, no_nan=True) if op == "eq" else case
    if right is value:
        left, right, op = right, left, MIRRORED[op]
    bound = right.facts
    # Only `ne` is true of NaN: a comparison that holds excludes it, one that does not may be due to it.
    ordered = bool(taken) != (test.op == "ne")
    if left is not value or bound is None or not (ordered or bound.no_nan):
        return case
    beyond = 1 if kind_of(value.dtype) == "int" and op in ("gt", "lt") else 0
    least = bound.least + beyond if op in ("gt", "ge", "eq") else case.least
    most = bound.most - beyond if op in ("lt", "le", "eq") else case.most
    return replace(
        case, least=max(case.least, least), most=min(case.most, most), no_nan=case.no_nan or ordered
    )


def _select_between(which: Facts, cases: list[Facts]) -> Claims:
    either = cases[0]
    for case in cases[1:]:
        either = meet(either, case)
    claims = elements(either)
    claims["uniform"] = which.uniform.intersection(*(case.uniform for case in cases))
    claims["lower"], claims["upper"] = either.lower, either.upper
    for name in ("symmetric", "exactly_symmetric"):
        claims[name] = which.exactly_symmetric and all(getattr(case, name) for case in cases)
    if len(cases) == 2 and which.band is not None:
        claims.update(_masked(which.band, cases[0], cases[1], claims))
    if len(cases) == 2 and cases[0].is_zero and cases[1].is_one:
        claims["one_hot"] = which.one_hot
    return claims


def _masked(band: Band, outer: Facts, inner: Facts, claims: Claims) -> Claims:
    """The structure of a matrix that is `inner` in a band and `outer` elsewhere."""
    if not band.inside:
        outer, inner = inner, outer
    covers_upper = band.high is None and (band.low is None or band.low <= 1)
    covers_lower = band.low is None and (band.high is None or band.high >= -1)
    found: Claims = {
        "lower": claims["lower"]
        or (outer.lower and band.high is not None and band.high <= 0)
        or (inner.lower and covers_upper),
        "upper": claims["upper"]
        or (outer.upper and band.low is not None and band.low >= 0)
        or (inner.upper and covers_lower),
    }
    if outer.is_zero and inner.is_one:
        found["band"] = Band(band.low, band.high)
    elif outer.is_one and inner.is_zero:
        found["band"] = complement(Band(band.low, band.high))
    return found
