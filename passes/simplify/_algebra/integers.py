"""Integer division, remainders and shifts."""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._algebra.operands import (
    Scalar,
    fill,
    is_int,
    keep,
    made_by,
    number_facts,
    number_of,
    only_here,
)
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_SHIFTS: Final = ("shift_left", "shift_right_logical", "shift_right_arithmetic")


@node_rule("rem", needs_static=False)
def remainder_of_one(node: Node, ctx: PassContext) -> Outcome:
    """x rem 1 → 0, x rem -1 → 0, for integers"""
    return fill(node, 0) if is_int(node.result) and number_of(node.operands[1]) in (1, -1) else None


@node_rule("rem", needs_static=False)
def remainder_of_smaller(node: Node, ctx: PassContext) -> Outcome:
    """x rem y → x, for integers with |x| < |y|"""
    return keep(node.operands[0], node) if _is_smaller(node) else None


@node_rule("div", needs_static=False)
def quotient_of_smaller(node: Node, ctx: PassContext) -> Outcome:
    """x / y → 0, for integers with |x| < |y|"""
    return fill(node, 0) if _is_smaller(node) else None


def _is_smaller(node: Node) -> bool:
    """Whether the first operand is known to be of smaller magnitude than the second."""
    if not is_int(node.result):
        return False
    x, y = (facts_of(value) for value in node.operands)
    size = max(abs(x.least), abs(x.most))
    return size < y.least or size < -y.most


@node_rule(*_SHIFTS, needs_static=False)
def shift_by_zero(node: Node, ctx: PassContext) -> Outcome:
    """x << 0 → x, x >> 0 → x"""
    x, by = node.operands
    return keep(x, node) if number_facts(by).is_zero else None


@node_rule(*_SHIFTS, needs_static=False)
def shift_of_zero(node: Node, ctx: PassContext) -> Outcome:
    """0 << k → 0, 0 >> k → 0"""
    return fill(node, 0) if number_facts(node.operands[0]).is_zero and is_int(node.result) else None


@node_rule(*_SHIFTS, needs_static=False)
def shift_of_shift(node: Node, ctx: PassContext) -> Outcome:
    """(x << a) << b → x << (a + b), or 0 when nothing is left; shifts to the right likewise"""
    inner = made_by(node.operands[0], node.op)
    if inner is None or not only_here(inner.result) or inner.operands[0].shape != node.result.shape:
        return None
    bits = int(jnp.iinfo(node.result.dtype).bits)
    first, second = number_of(inner.operands[1]), number_of(node.operands[1])
    if first is None or second is None or not (0 <= first < bits and 0 <= second < bits):
        return None
    total = int(first) + int(second)
    if total >= bits:
        if node.op != "shift_right_arithmetic":
            return fill(node, 0)
        total = bits - 1
    return rewrite(_shift, inner.operands[0], op=node.op, by=Scalar(total, node.result.dtype))


def _shift(x: jax.Array, op: str, by: Scalar) -> jax.Array:
    shifted: jax.Array = getattr(lax, op)(x, by.array)
    return shifted


@node_rule("shift_right_arithmetic", needs_static=False)
def shift_of_nonnegative(node: Node, ctx: PassContext) -> Outcome:
    """x >> k → 0, where x is known to lie in 0 … 2^k - 1"""
    x, by = node.operands
    number = number_of(by)
    if number is None or not 0 <= number < jnp.iinfo(x.dtype).bits:
        return None
    facts = facts_of(x)
    return fill(node, 0) if facts.least >= 0 and facts.most < 2 ** int(number) else None


RULES: Final[tuple[Rule, ...]] = (
    remainder_of_one,
    remainder_of_smaller,
    quotient_of_smaller,
    shift_by_zero,
    shift_of_zero,
    shift_of_shift,
    shift_of_nonnegative,
)
