"""Reductions of little: over dimensions of size one, of one number, of what was spread out just before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import (
    Scalar,
    fill,
    is_discrete,
    is_float,
    is_placed,
    keep,
    kind_of,
    made_by,
    number_of,
)
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_LAX: Final[Mapping[str, Callable[..., Any]]] = {
    "reduce_sum": lax.reduce_sum,
    "reduce_max": lax.reduce_max,
    "reduce_min": lax.reduce_min,
    "reduce_and": lax.reduce_and,
    "reduce_or": lax.reduce_or,
    "reduce_prod": lax.reduce_prod,
}
_IDEMPOTENT: Final = ("reduce_max", "reduce_min", "reduce_and", "reduce_or")


def _axes(node: Node) -> tuple[int, ...]:
    return tuple(node.params["axes"])


def _lengths(node: Node) -> list[Any]:
    """The sizes of the dimensions that are reduced."""
    return [node.operands[0].shape[axis] for axis in _axes(node)]


@node_rule(*_LAX, needs_static=False)
def reduce_nothing(node: Node, ctx: PassContext) -> Outcome:
    """A reduction over no dimension → its operand"""
    return None if _axes(node) else keep(node.operands[0], node)


@node_rule(*_IDEMPOTENT, "reduce_prod")
def reduce_one(node: Node, ctx: PassContext) -> Outcome:
    """The greatest, least, conjunction, disjunction or product over dimensions of size one → squeeze"""
    return _squeezed(node)


@node_rule("reduce_sum")
def sum_one_integer(node: Node, ctx: PassContext) -> Outcome:
    """The sum over dimensions of size one → squeeze, for integers"""
    return _squeezed(node) if is_discrete(node.result) else None


@node_rule("reduce_sum", level="reassociate")
def sum_one(node: Node, ctx: PassContext) -> Outcome:
    """The sum over dimensions of size one → squeeze. Not exact: the sum of -0.0 alone is 0.0."""
    return _squeezed(node)


def _squeezed(node: Node) -> Outcome:
    if not _axes(node) or any(length != 1 for length in _lengths(node)) or is_placed(node.result):
        return None
    return rewrite(_squeeze, node.operands[0], axes=_axes(node))


def _squeeze(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return lax.squeeze(x, axes)


@node_rule(*_IDEMPOTENT)
def reduce_number(node: Node, ctx: PassContext) -> Outcome:
    """The greatest, least, conjunction or disjunction of one number, many times → that number"""
    number = number_of(node.operands[0])
    return None if number is None or 0 in _lengths(node) else fill(node, number)


@node_rule("reduce_sum")
def sum_integer(node: Node, ctx: PassContext) -> Outcome:
    """The sum of n times one integer → n times it"""
    number = number_of(node.operands[0]) if is_discrete(node.result) else None
    if number is None or kind_of(node.result.dtype) != "int":
        return None
    total = int(number) * math.prod(_lengths(node))
    return fill(node, np.asarray(total % 2**64, np.uint64))


@node_rule("reduce_sum", level="reassociate")
def sum_number(node: Node, ctx: PassContext) -> Outcome:
    """The sum of n times one number → n times it, where that is finite"""
    number = number_of(node.operands[0]) if is_float(node.result) else None
    if number is None or not np.isfinite(number):
        return None
    total = Scalar(float(number) * math.prod(_lengths(node)), node.result.dtype)
    return fill(node, total.array) if np.isfinite(total.array) else None


@node_rule("argmax", "argmin")
def argmax_of_number(node: Node, ctx: PassContext) -> Outcome:
    """argmax of one number, many times → 0, the first of equals"""
    known = number_of(node.operands[0]) is not None and 0 not in _lengths(node)
    return fill(node, 0) if known else None


# Reductions of broadcasts


@node_rule(*_IDEMPOTENT)
def reduce_broadcast(node: Node, ctx: PassContext) -> Outcome:
    """reduce(broadcast(x)) → broadcast(reduce(x)), where a dimension goes that the broadcast made"""
    return _before_broadcast(node)


@node_rule("reduce_sum")
def sum_integer_broadcast(node: Node, ctx: PassContext) -> Outcome:
    """sum(broadcast(x)) → n * broadcast(sum(x)), for integers"""
    return _before_broadcast(node) if is_discrete(node.result) else None


@node_rule("reduce_sum", level="reassociate")
def sum_broadcast(node: Node, ctx: PassContext) -> Outcome:
    """sum(broadcast(x)) → n * broadcast(sum(x)), where dimensions of size n go that the broadcast made"""
    return _before_broadcast(node)


def _before_broadcast(node: Node) -> Outcome:
    spread = made_by(node.operands[0], "broadcast_in_dim")
    if spread is None or is_placed(node.result) or len(spread.operands) != 1:
        return None
    (x,) = spread.operands
    places = tuple(spread.params["broadcast_dimensions"])
    count = math.prod(_new_lengths(node, x, places))
    if count < 2 or (x.ndim == 0 and number_of(x) is not None):
        return None
    times = count if node.op == "reduce_sum" else 1
    factor = Scalar(times, node.result.dtype)
    if int(factor.array) != times:
        return None
    shape = node.result.shape
    return rewrite(_reduce_first, x, op=node.op, axes=_axes(node), places=places, shape=shape, factor=factor)


def _new_lengths(node: Node, x: Value, places: tuple[int, ...]) -> list[int]:
    """The sizes of the reduced dimensions along which the broadcast repeats."""
    own = {out for d, out in enumerate(places) if x.shape[d] == node.operands[0].shape[out]}
    return [length for axis, length in zip(_axes(node), _lengths(node), strict=True) if axis not in own]


def _reduce_first(
    x: jax.Array,
    op: str,
    axes: tuple[int, ...],
    places: tuple[int, ...],
    shape: tuple[int, ...],
    factor: Scalar,
) -> jax.Array:
    gone = tuple(d for d, out in enumerate(places) if out in axes)
    if gone:
        x = _LAX[op](x, gone)
    rank = len(shape) + len(axes)
    kept = [out for out in range(rank) if out not in axes]
    x = lax.broadcast_in_dim(x, shape, tuple(kept.index(out) for out in places if out not in axes))
    return x if factor.array == 1 else lax.mul(x, factor.array)


# Running sums and the like


@node_rule("cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulate_one(node: Node, ctx: PassContext) -> Outcome:
    """A running product, maximum or minimum along a dimension of size one → its operand"""
    return _cumulated(node)


@node_rule("cumsum", level="reassociate")
def cumulative_sum_of_one(node: Node, ctx: PassContext) -> Outcome:
    """A running sum along a dimension of size one → its operand. Not exact: the sign of zero."""
    return _cumulated(node)


def _cumulated(node: Node) -> Outcome:
    (x,) = node.operands
    return keep(x, node) if x.shape[node.params["axis"]] == 1 else None


RULES: Final[tuple[Rule, ...]] = (
    reduce_nothing,
    reduce_one,
    sum_one_integer,
    sum_one,
    reduce_number,
    sum_integer,
    sum_number,
    argmax_of_number,
    reduce_broadcast,
    sum_integer_broadcast,
    sum_broadcast,
    cumulate_one,
    cumulative_sum_of_one,
)
