"""Reductions of one number, and running sums along dimensions of size one."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._algebra.operands import (
    Scalar,
    fill,
    is_discrete,
    is_float,
    keep,
    kind_of,
    number_of,
)
from lepton_jax.rewrite import PassContext, Rule, node_rule
from lepton_jax.rewrite.rule import Outcome

_IDEMPOTENT: Final = ("reduce_max", "reduce_min", "reduce_and", "reduce_or")
_REDUCTIONS: Final = (*_IDEMPOTENT, "reduce_sum", "reduce_prod")


def _axes(node: Node) -> tuple[int, ...]:
    return tuple(node.params["axes"])


def _lengths(node: Node) -> list[Any]:
    """The sizes of the dimensions that are reduced."""
    return [node.operands[0].shape[axis] for axis in _axes(node)]


@node_rule(*_REDUCTIONS, needs_static=False)
def reduce_nothing(node: Node, ctx: PassContext) -> Outcome:
    """A reduction over no dimension → its operand"""
    return None if _axes(node) else keep(node.operands[0], node)


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


# Running sums and the like


@node_rule("cumprod", "cummax", "cummin")
def cumulate_one(node: Node, ctx: PassContext) -> Outcome:
    """A running product, maximum or minimum along a dimension of size one → its operand"""
    return _cumulated(node)


@node_rule("cumsum", "cumlogsumexp", level="reassociate")
def cumulative_sum_of_one(node: Node, ctx: PassContext) -> Outcome:
    """A running sum along a dimension of size one → its operand, also one of exponentials, in logarithms.

    Not exact: the sign of zero.
    """
    return _cumulated(node)


def _cumulated(node: Node) -> Outcome:
    (x,) = node.operands
    return keep(x, node) if x.shape[node.params["axis"]] == 1 else None


RULES: Final[tuple[Rule, ...]] = (
    reduce_nothing,
    reduce_number,
    sum_integer,
    sum_number,
    argmax_of_number,
    cumulate_one,
    cumulative_sum_of_one,
)
