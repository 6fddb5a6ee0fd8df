"""Sums, differences and signs: add, add_any, sub, neg."""

from __future__ import annotations

from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import (
    Scalar,
    fill,
    has_term,
    has_unit,
    is_discrete,
    is_float,
    is_int,
    keep,
    kind_of,
    made_by,
    never_minus_zero,
    number_facts,
    number_of,
    only_here,
    orders,
)
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome


@node_rule("add", "add_any", given=has_unit, needs_static=False)
def add_nothing(node: Node, ctx: PassContext) -> Outcome:
    """x + 0 → x, where that keeps every bit: integers, x + -0.0, and x + 0.0 where x is never -0.0"""
    for x, zero in orders(node):
        facts = number_facts(zero)
        if facts.is_zero and (facts.is_negative_zero or never_minus_zero(x)):
            return keep(x, node)
    return None


@node_rule("add", "add_any", level="reassociate", given=has_unit, needs_static=False)
def add_zero(node: Node, ctx: PassContext) -> Outcome:
    """x + 0.0 → x. Not exact: -0.0 + 0.0 is 0.0."""
    if is_discrete(node.result):
        return None
    for x, zero in orders(node):
        if number_facts(zero).is_zero:
            return keep(x, node)
    return None


@node_rule("sub", given=has_unit, needs_static=False)
def subtract_nothing(node: Node, ctx: PassContext) -> Outcome:
    """x - 0 → x, where that keeps every bit: x - 0.0, integers, and x - -0.0 where x is never -0.0"""
    x, zero = node.operands
    facts = number_facts(zero)
    exact = facts.is_zero and (facts.is_positive_zero or never_minus_zero(x))
    return keep(x, node) if exact else None


@node_rule("sub", level="reassociate", given=has_unit, needs_static=False)
def subtract_zero(node: Node, ctx: PassContext) -> Outcome:
    """x - -0.0 → x. Not exact: -0.0 - -0.0 is 0.0."""
    x, zero = node.operands
    return keep(x, node) if number_facts(zero).is_zero else None


@node_rule("sub", needs_static=False)
def subtract_self(node: Node, ctx: PassContext) -> Outcome:
    """x - x → 0, for integers and for x that is known to be finite (infinity and NaN give NaN)"""
    x, y = node.operands
    if x is not y or kind_of(x.dtype) == "other":
        return None
    if not facts_of(x).finite:
        ctx.miss("subtract-self", node, "the operand may be infinite or NaN")
        return None
    return fill(node, 0)


@node_rule("sub", given=has_unit, needs_static=False)
def subtract_from_nothing(node: Node, ctx: PassContext) -> Outcome:
    """0 - x → -x, where that keeps every bit: -0.0 - x, integers, and x that is never zero"""
    zero, x = node.operands
    facts = number_facts(zero)
    if not facts.is_zero or not (facts.is_negative_zero or is_discrete(x) or facts_of(x).nonzero):
        return None
    return rewrite(lax.neg, x) if x.shape == node.result.shape else None


@node_rule("sub", level="reassociate", given=has_unit, needs_static=False)
def subtract_from_zero(node: Node, ctx: PassContext) -> Outcome:
    """0.0 - x → -x. Not exact: 0.0 - 0.0 is 0.0, not -0.0."""
    zero, x = node.operands
    if is_discrete(x) or not number_facts(zero).is_zero or x.shape != node.result.shape:
        return None
    return rewrite(lax.neg, x)


@node_rule("neg", needs_static=False)
def neg_of_neg(node: Node, ctx: PassContext) -> Outcome:
    """-(-x) → x"""
    inner = made_by(node.operands[0], "neg")
    return None if inner is None else keep(inner.operands[0], node)


@node_rule("add", "add_any", needs_static=False)
def add_of_neg(node: Node, ctx: PassContext) -> Outcome:
    """x + (-y) → x - y"""
    for x, y in orders(node):
        inner = made_by(y, "neg")
        if inner is not None:
            return rewrite(lax.sub, x, inner.operands[0])
    return None


@node_rule("sub", needs_static=False)
def subtract_neg(node: Node, ctx: PassContext) -> Outcome:
    """x - (-y) → x + y"""
    x, y = node.operands
    inner = made_by(y, "neg")
    return None if inner is None else rewrite(lax.add, x, inner.operands[0])


@node_rule("neg", needs_static=False)
def neg_of_integer_difference(node: Node, ctx: PassContext) -> Outcome:
    """-(x - y) → y - x, for integers"""
    return _swapped(node) if is_int(node.result) else None


@node_rule("neg", level="reassociate", needs_static=False)
def neg_of_difference(node: Node, ctx: PassContext) -> Outcome:
    """-(x - y) → y - x. Not exact: where x equals y it is -0.0, then 0.0."""
    return _swapped(node)


def _swapped(node: Node) -> Outcome:
    inner = made_by(node.operands[0], "sub")
    if inner is None or not only_here(inner.result):
        return None
    return rewrite(lax.sub, inner.operands[1], inner.operands[0])


# Chains of constants: everything that adds constants is sign · x + constant.


@node_rule("add", "sub", given=has_term, needs_static=False)
def merge_integer_terms(node: Node, ctx: PassContext) -> Outcome:
    """(x + a) + b → x + (a + b) for integers, and the same with differences; all of it wraps alike"""
    chain = _chain(node) if is_int(node.result) else None
    if chain is None:
        return None
    x, sign, inner, outer = chain
    total = int(inner) + int(outer)
    return _shifted(x, sign, _wrapped(total, node.result.dtype), negative=False)


@node_rule("add", "sub", level="reassociate", given=has_term, needs_static=False)
def merge_terms(node: Node, ctx: PassContext) -> Outcome:
    """(x + a) + b → x + (a + b), and the same with differences.

    Only where a and b have the same sign: (x + a) - a is how programs round on purpose.
    """
    chain = _chain(node) if is_float(node.result) else None
    if chain is None:
        return None
    x, sign, inner, outer = chain
    total = float(inner) + float(outer)
    if float(inner) * float(outer) < 0:
        ctx.miss("merge-terms", node, "constants of different sign may be meant to round")
        return None
    scalar = Scalar(total, node.result.dtype)
    if not np.isfinite(scalar.array):
        return None
    return _shifted(x, sign, scalar, negative=total < 0)


def _chain(node: Node) -> tuple[Value, int, Any, Any] | None:
    """x, its sign and both constants where the node adds a constant to sign · x + constant."""
    outer = _term(node)
    inner_node = None if outer is None else made_by(outer[0], "add", "sub")
    if outer is None or inner_node is None or not only_here(outer[0]):
        return None
    inner = _term(inner_node)
    if inner is None or inner[0].shape != node.result.shape:
        return None
    return inner[0], outer[1] * inner[1], outer[1] * _python(inner[2]), _python(outer[2])


def _term(node: Node) -> tuple[Value, int, Any] | None:
    """(x, sign, constant) where the node is sign · x + constant."""
    a, b = node.operands
    if (number := number_of(b)) is not None:
        return a, 1, _python(number) if node.op == "add" else -_python(number)
    if (number := number_of(a)) is not None:
        return b, 1 if node.op == "add" else -1, _python(number)
    return None


def _python(number: Any) -> Any:
    """A number that does not wrap or round when it is added."""
    return number.item() if hasattr(number, "item") else number


def _wrapped(number: int, dtype: Any) -> Scalar:
    return Scalar(np.asarray(number % 2**64, np.uint64), dtype)


def _shifted(x: Value, sign: int, scalar: Scalar, negative: bool) -> Outcome:
    if sign < 0:
        return rewrite(_from_constant, x, scalar=scalar)
    if negative:
        return rewrite(_minus_constant, x, scalar=Scalar(-scalar.array, scalar.dtype))
    return rewrite(_plus_constant, x, scalar=scalar)


def _plus_constant(x: jax.Array, scalar: Scalar) -> jax.Array:
    return lax.add(x, scalar.array)


def _minus_constant(x: jax.Array, scalar: Scalar) -> jax.Array:
    return lax.sub(x, scalar.array)


def _from_constant(x: jax.Array, scalar: Scalar) -> jax.Array:
    return lax.sub(scalar.array, x)


# What asks most about an operand stands after what asks less.
RULES: Final[tuple[Rule, ...]] = (
    add_zero,
    add_nothing,
    subtract_nothing,
    subtract_zero,
    subtract_from_zero,
    subtract_from_nothing,
    merge_integer_terms,
    merge_terms,
    subtract_self,
    neg_of_neg,
    add_of_neg,
    subtract_neg,
    neg_of_integer_difference,
    neg_of_difference,
)
