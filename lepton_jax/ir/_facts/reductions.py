"""Reductions, cumulative operations, products of matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from lepton_jax.ir._facts import intervals as iv
from lepton_jax.ir._facts.dtypes import float_limits, kind_of, scalar, static_size
from lepton_jax.ir._facts.lattice import Claims, Facts, elements
from lepton_jax.ir._facts.registry import transfer
from lepton_jax.ir.graph import Node, Value

_TERMS: Final = 2**20
"""Sums of more floats than this may drift too far for their bounds to be claimed."""


def _arithmetic(*values: Value) -> bool:
    """Whether they hold booleans, integers or ordinary floats."""
    return all(kind_of(value.dtype) not in ("complex", "other") for value in values)


def _length(shape: Sequence[Any], axes: Sequence[int]) -> int | None:
    """How many elements a reduction takes together; None when it is not known."""
    return static_size(tuple(shape[axis] for axis in axes))


def _sum(f: Facts, count: int | None, dtype: Any) -> Claims:
    """The claims of sums of `count` elements (None: not known how many)."""
    claims: Claims = {}
    if kind_of(dtype) == "float":
        claims = _float_sum(iv.ends(f), count, dtype)
        claims["no_nan"] = claims["no_nan"] and f.no_nan
    elif count is not None:
        claims.update(least=f.least * count, most=f.most * count)
    if f.is_zero and not f.is_negative_zero:
        claims["splat"] = scalar(0, dtype)
    return claims


def _float_sum(terms: iv.Interval, count: int | None, dtype: Any) -> Claims:
    """The claims of sums of up to `count` floats that lie in an interval, none of them NaN."""
    # Every addition rounds; twice the bound is enough room for them all.
    factor = 2.0 * count if count is not None and count <= _TERMS else math.inf
    least, most = iv.times(factor, min(terms[0], 0.0)), iv.times(factor, max(terms[1], 0.0))
    greatest = float_limits(dtype)[0]
    # Partial sums that overflow to both infinities make NaN.
    return {"least": least, "most": most, "no_nan": least == 0 or most == 0 or -least < greatest > most}


def _kept(node: Node, f: Facts, axes: Sequence[int]) -> frozenset[int]:
    """The dimensions of the result along which the operand does not vary."""
    left = [d for d in range(node.operands[0].ndim) if d not in axes]
    return frozenset(out for out, d in enumerate(left) if d in f.uniform)


@transfer("reduce_sum")
def _reduce_sum(node: Node, facts: Sequence[Facts]) -> Claims:
    f, operand, axes = facts[0], node.operands[0], node.params["axes"]
    if not _arithmetic(operand):
        return {}
    claims = _sum(f, _length(operand.shape, axes), node.result.dtype)
    claims["uniform"] = _kept(node, f, axes)
    if f.one_hot in axes and len(axes) == 1:
        claims.update(least=0, most=1)
    return claims


@transfer("reduce_max", "reduce_min")
def _reduce_extreme(node: Node, facts: Sequence[Facts]) -> Claims:
    axes = node.params["axes"]
    if not _length(node.operands[0].shape, axes):
        return {}
    return elements(facts[0]) | {"uniform": _kept(node, facts[0], axes)}


@transfer("reduce_and", "reduce_or")
def _reduce_logic(node: Node, facts: Sequence[Facts]) -> Claims:
    (f,) = facts
    if kind_of(node.result.dtype) != "bool":
        return {}
    neutral = node.op == "reduce_and"
    if f.splat is not None and (
        bool(f.splat) == neutral or _length(node.operands[0].shape, node.params["axes"])
    ):
        return {"splat": np.bool_(f.splat)}
    return {"uniform": _kept(node, f, node.params["axes"])}


@transfer("reduce_prod")
def _reduce_prod(node: Node, facts: Sequence[Facts]) -> Claims:
    if kind_of(node.result.dtype) != "float" or not facts[0].nonnegative:
        return {}
    return {"least": 0.0}


@transfer("argmax", "argmin")
def _arg(node: Node, facts: Sequence[Facts]) -> Claims:
    length = _length(node.operands[0].shape, node.params["axes"])
    return {"least": 0, "most": length - 1} if length else {}


@transfer("cumsum")
def _cumsum(node: Node, facts: Sequence[Facts]) -> Claims:
    f, operand = facts[0], node.operands[0]
    length = operand.shape[node.params["axis"]]
    if not _arithmetic(operand):
        return {}
    claims = _sum(f, length if type(length) is int else None, node.result.dtype)
    if kind_of(node.result.dtype) == "int" and type(length) is int:
        claims["least"], claims["most"] = min(f.least, claims["least"]), max(f.most, claims["most"])
    claims["uniform"] = f.uniform - {node.params["axis"]}
    return claims


@transfer("cummax", "cummin")
def _cumulative_extreme(node: Node, facts: Sequence[Facts]) -> Claims:
    return elements(facts[0]) | {"uniform": facts[0].uniform}


@transfer("cumprod")
def _cumprod(node: Node, facts: Sequence[Facts]) -> Claims:
    return {"least": 0.0} if kind_of(node.result.dtype) == "float" and facts[0].nonnegative else {}


@transfer("conv_general_dilated")
def _conv(node: Node, facts: Sequence[Facts]) -> Claims:
    # Padding and dilation put zeros among the elements.
    defined = all(f.finite for f in facts)
    return _sum_of_products(node, facts[0], facts[1], None, defined)


@transfer("dot_general")
def _dot(node: Node, facts: Sequence[Facts]) -> Claims:
    a, b = facts
    (left, _), _ = node.params["dimension_numbers"]
    defined = a.no_nan and b.no_nan and (a.finite or b.nonzero) and (b.finite or a.nonzero)
    claims = _sum_of_products(node, a, b, _length(node.operands[0].shape, left), defined)
    if _is_gram(node):
        claims["symmetric"] = True
        claims["exactly_symmetric"] = kind_of(node.result.dtype) == "int"
    if _plain_matmul(node):
        finite = a.finite and b.finite and _arithmetic(*node.operands, node.result)
        claims["lower"] = finite and a.lower and b.lower
        claims["upper"] = finite and a.upper and b.upper
        claims["permutation"] = a.permutation and b.permutation
        claims["identity"] = a.identity and b.identity
    return claims


def _sum_of_products(node: Node, a: Facts, b: Facts, count: int | None, defined: bool) -> Claims:
    dtype = node.result.dtype
    if not _arithmetic(*node.operands, node.result):
        return {}
    terms = iv.product(iv.ends(a), iv.ends(b))
    if kind_of(dtype) == "int":
        return {} if count is None else {"least": terms[0] * count, "most": terms[1] * count}
    if kind_of(dtype) != "float":
        return {}
    rounded = iv.claim(terms, dtype)
    claims = _float_sum((rounded["least"], rounded["most"]), count, dtype)
    return claims | {"no_nan": claims["no_nan"] and defined}


def _plain_matmul(node: Node) -> bool:
    """Whether it multiplies matrices (stacks of them) as `@` does."""
    (left, right), (left_batch, right_batch) = node.params["dimension_numbers"]
    rank = node.operands[0].ndim
    leading = tuple(range(rank - 2))
    return (
        rank >= 2
        and node.operands[1].ndim == rank
        and tuple(left_batch) == tuple(right_batch) == leading
        and (tuple(left), tuple(right)) == ((rank - 1,), (rank - 2,))
    )


def _is_gram(node: Node) -> bool:
    """Whether it multiplies a value with its own transpose: the free dimensions are the same one."""
    a, b = node.operands
    (left, right), (left_batch, right_batch) = node.params["dimension_numbers"]
    base, places = _untransposed(a)
    other, other_places = _untransposed(b)
    if base is not other or node.result.ndim != len(left_batch) + 2:
        return False
    pairs = [
        (places[i], other_places[j])
        for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True)
    ]
    return all(i == j for i, j in pairs)


def _untransposed(value: Value) -> tuple[Value, tuple[int, ...]]:
    """The value behind a transpose, and for each dimension the one it comes from."""
    if value.node is not None and value.node.op == "transpose":
        return value.node.operands[0], tuple(value.node.params["permutation"])
    return value, tuple(range(value.ndim))
