"""Functions of one number: abs, sign, rounding, is_finite, reduce_precision."""

from __future__ import annotations

from typing import Final

from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import (
    fill,
    is_discrete,
    is_float,
    is_int,
    keep,
    kind_of,
    made_by,
    never_minus_zero,
)
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome


@node_rule("abs", needs_static=False)
def abs_of_nonnegative(node: Node, ctx: PassContext) -> Outcome:
    """|x| → x, where x is known not to be negative, nor -0.0 (its derivative at zero is 1 in JAX, too)"""
    (x,) = node.operands
    exact = kind_of(x.dtype) in ("int", "float") and facts_of(x).nonnegative and never_minus_zero(x)
    return keep(x, node) if exact else None


@node_rule("abs", level="reassociate", needs_static=False)
def abs_of_nonnegative_or_minus_zero(node: Node, ctx: PassContext) -> Outcome:
    """|x| → x, where x is known not to be negative. Not exact: |-0.0| is 0.0."""
    (x,) = node.operands
    return keep(x, node) if is_float(x) and facts_of(x).nonnegative else None


@node_rule("abs", needs_static=False)
def abs_of_neg(node: Node, ctx: PassContext) -> Outcome:
    """|-x| → |x|, for integers (the derivatives of floats differ at zero)"""
    inner = made_by(node.operands[0], "neg") if is_int(node.result) else None
    return None if inner is None else rewrite(lax.abs, *inner.operands)


@node_rule("sign", needs_static=False)
def sign_of_known(node: Node, ctx: PassContext) -> Outcome:
    """sign(x) → 1 or -1, where x is known to be above or below zero"""
    (x,) = node.operands
    facts = facts_of(x)
    if kind_of(x.dtype) not in ("int", "float") or not facts.nonzero or not facts.no_nan:
        return None
    if facts.nonnegative:
        return fill(node, 1)
    return fill(node, -1) if facts.nonpositive else None


@node_rule("sign", needs_static=False)
def sign_of_sign(node: Node, ctx: PassContext) -> Outcome:
    """sign(sign(x)) → sign(x), for real numbers and integers"""
    (x,) = node.operands
    return keep(x, node) if made_by(x, "sign") and kind_of(x.dtype) in ("int", "float") else None


@node_rule("floor", "ceil", "round", needs_static=False)
def round_of_whole(node: Node, ctx: PassContext) -> Outcome:
    """floor, ceil and round of a float that is whole already → that float"""
    (x,) = node.operands
    return keep(x, node) if _is_whole(x) else None


def _is_whole(x: Value) -> bool:
    made = made_by(x, "floor", "ceil", "round", "sign", "convert_element_type")
    if made is None or not is_float(x):
        return False
    return made.op != "convert_element_type" or is_discrete(made.operands[0])


@node_rule("is_finite", needs_static=False)
def is_finite_of_finite(node: Node, ctx: PassContext) -> Outcome:
    """is_finite(x) → true, where x is known to be finite"""
    return fill(node, True) if facts_of(node.operands[0]).finite else None


@node_rule("reduce_precision", needs_static=False)
def reduce_precision_twice(node: Node, ctx: PassContext) -> Outcome:
    """reduce_precision(reduce_precision(x)) → reduce_precision(x), to the same precision"""
    (x,) = node.operands
    made = made_by(x, "reduce_precision")
    return keep(x, node) if made is not None and made.params == node.params else None


RULES: Final[tuple[Rule, ...]] = (
    abs_of_nonnegative,
    abs_of_nonnegative_or_minus_zero,
    abs_of_neg,
    sign_of_known,
    sign_of_sign,
    round_of_whole,
    is_finite_of_finite,
    reduce_precision_twice,
)
