"""Products and quotients: mul, div."""

from __future__ import annotations

import math
from typing import Final

import jax
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import (
    Scalar,
    fill,
    has_number,
    has_unit,
    is_float,
    is_int,
    is_normal,
    keep,
    kind_of,
    made_by,
    never_minus_zero,
    number_facts,
    number_of,
    orders,
)
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome


@node_rule("mul", given=has_unit, needs_static=False)
def mul_by_one(node: Node, ctx: PassContext) -> Outcome:
    """x * 1 → x, for real numbers and integers"""
    return _unit(node)


@node_rule("mul", level="reassociate", given=has_unit, needs_static=False)
def complex_mul_by_one(node: Node, ctx: PassContext) -> Outcome:
    """x * 1 → x, for complex numbers. Not exact: infinity times the imaginary zero is NaN."""
    return _unit(node, "complex")


def _unit(node: Node, *kinds: str) -> Outcome:
    if kind_of(node.result.dtype) not in (kinds or ("int", "float")):
        return None
    for x, one in orders(node):
        if number_facts(one).is_one:
            return keep(x, node)
    return None


@node_rule("mul", given=has_unit, needs_static=False)
def mul_by_minus_one(node: Node, ctx: PassContext) -> Outcome:
    """x * -1 → -x, for real numbers and integers"""
    if not (is_float(node.result) or is_int(node.result)):
        return None
    for x, minus in orders(node):
        if number_of(minus) == -1 and x.shape == node.result.shape:
            return rewrite(lax.neg, x)
    return None


@node_rule("mul", given=has_unit, needs_static=False)
def mul_by_zero(node: Node, ctx: PassContext) -> Outcome:
    """x * 0 → 0, where that keeps every bit: integers, and finite x without a minus sign"""
    for x, zero in orders(node):
        facts = number_facts(zero)
        if not facts.is_zero or not is_number(node.result):
            continue
        if is_int(x) or (_finite(x, node, ctx) and facts_of(x).nonnegative and never_minus_zero(x)):
            return fill(node, facts.splat)
    return None


@node_rule("mul", level="reassociate", given=has_unit, needs_static=False)
def mul_finite_by_zero(node: Node, ctx: PassContext) -> Outcome:
    """x * 0.0 → 0.0, where x is known to be finite. Not exact: -1.0 * 0.0 is -0.0."""
    for x, zero in orders(node):
        if number_facts(zero).is_zero and is_number(node.result) and facts_of(x).finite:
            return fill(node, 0)
    return None


def is_number(value: Value) -> bool:
    """Whether its elements are numbers that rules know the arithmetic of."""
    return kind_of(value.dtype) in ("int", "float", "complex")


def _finite(x: Value, node: Node, ctx: PassContext) -> bool:
    if facts_of(x).finite:
        return True
    ctx.miss("mul-by-zero", node, "the other factor may be infinite or NaN")
    return False


@node_rule("mul", needs_static=False)
def mul_of_negs(node: Node, ctx: PassContext) -> Outcome:
    """(-x) * (-y) → x * y"""
    x, y = (made_by(value, "neg") for value in node.operands)
    return None if x is None or y is None else rewrite(lax.mul, x.operands[0], y.operands[0])


@node_rule("div", needs_static=False)
def div_of_negs(node: Node, ctx: PassContext) -> Outcome:
    """(-x) / (-y) → x / y, for real numbers (the least integer has no negative)"""
    x, y = (made_by(value, "neg") for value in node.operands)
    if x is None or y is None or not is_float(node.result):
        return None
    return rewrite(lax.div, x.operands[0], y.operands[0])


@node_rule("div", given=has_unit, needs_static=False)
def div_by_one(node: Node, ctx: PassContext) -> Outcome:
    """x / 1 → x, for real numbers and integers"""
    x, one = node.operands
    return keep(x, node) if number_facts(one).is_one and kind_of(x.dtype) in ("int", "float") else None


@node_rule("div", given=has_unit, needs_static=False)
def div_by_minus_one(node: Node, ctx: PassContext) -> Outcome:
    """x / -1 → -x, for real numbers"""
    x, minus = node.operands
    if not is_float(x) or x.shape != node.result.shape or number_of(minus) != -1:
        return None
    return rewrite(lax.neg, x)


@node_rule("div", needs_static=False)
def div_by_self(node: Node, ctx: PassContext) -> Outcome:
    """x / x → 1, where x is known to be finite and not zero"""
    x, y = node.operands
    if x is not y or not (is_float(x) or is_int(x)):
        return None
    facts = facts_of(x)
    if not (facts.finite and facts.nonzero):
        ctx.miss("div-by-self", node, "the operand may be zero, infinite or NaN")
        return None
    return fill(node, 1)


@node_rule("div", given=has_unit, needs_static=False)
def zero_div(node: Node, ctx: PassContext) -> Outcome:
    """0 / x → 0, where that keeps every bit: integers that are not zero, and x > 0"""
    zero, x = node.operands
    number = number_facts(zero)
    if not number.is_zero:
        return None
    facts = facts_of(x)
    if not facts.nonzero or not facts.no_nan or not is_number(x):
        return None
    exact = is_int(x) or (is_float(x) and facts.positive)
    return fill(node, number.splat) if exact else None


@node_rule("div", level="reassociate", given=has_unit, needs_static=False)
def zero_div_nonzero(node: Node, ctx: PassContext) -> Outcome:
    """0.0 / x → 0.0, where x is known to be neither zero nor NaN. Not exact: 0.0 / -1.0 is -0.0."""
    zero, x = node.operands
    if not number_facts(zero).is_zero or not is_float(x):
        return None
    facts = facts_of(x)
    return fill(node, 0) if facts.nonzero and facts.no_nan else None


@node_rule("div", given=has_number, needs_static=False)
def div_by_power_of_two(node: Node, ctx: PassContext) -> Outcome:
    """x / 2^k → x * 2^-k, where 2^-k is a normal number; the quotient is the same to the bit"""
    x, divisor = node.operands
    number = number_of(divisor) if is_float(x) and not x.is_const else None
    if number is None or not is_normal(number) or math.frexp(float(number))[0] not in (0.5, -0.5):
        return None
    inverse = Scalar(1.0 / float(number), x.dtype)
    if not is_normal(inverse.array) or x.shape != node.result.shape:
        return None
    return rewrite(_times_constant, x, scalar=inverse)


def _times_constant(x: jax.Array, scalar: Scalar) -> jax.Array:
    return lax.mul(x, scalar.array)


RULES: Final[tuple[Rule, ...]] = (
    mul_by_one,
    complex_mul_by_one,
    mul_by_minus_one,
    mul_by_zero,
    mul_finite_by_zero,
    div_by_one,
    div_by_minus_one,
    zero_div,
    zero_div_nonzero,
    mul_of_negs,
    div_of_negs,
    div_by_self,
    div_by_power_of_two,
)
