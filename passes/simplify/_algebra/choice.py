"""Choices: select_n."""

from __future__ import annotations

from typing import Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import is_bool, keep, made_by, number_of, only_here
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome


@node_rule("select_n", needs_static=False)
def select_of_same(node: Node, ctx: PassContext) -> Outcome:
    """select(p, x, x) → x"""
    _, first, *others = node.operands
    return keep(first, node) if all(case is first for case in others) else None


@node_rule("select_n", needs_static=False)
def select_by_constant(node: Node, ctx: PassContext) -> Outcome:
    """select(constant, x, y) → x or y"""
    which, *cases = node.operands
    number = number_of(which)
    if number is None or not 0 <= int(number) < len(cases):
        return None
    return keep(cases[int(number)], node)


@node_rule("select_n", needs_static=False)
def select_by_not(node: Node, ctx: PassContext) -> Outcome:
    """select(not p, x, y) → select(p, y, x)"""
    which, *cases = node.operands
    inner = made_by(which, "not")
    if inner is None or len(cases) != 2 or not is_bool(which):
        return None
    return rewrite(_select, inner.operands[0], cases[1], cases[0])


@node_rule("select_n", needs_static=False)
def select_of_truth(node: Node, ctx: PassContext) -> Outcome:
    """select(p, false, true) → p, select(p, true, false) → not p"""
    which, *cases = node.operands
    if not is_bool(node.result) or not is_bool(which) or len(cases) != 2:
        return None
    if_false, if_true = map(number_of, cases)
    if if_false is None or if_true is None or if_false == if_true:
        return None
    if if_true:
        return keep(which, node)
    return rewrite(lax.bitwise_not, which) if which.shape == node.result.shape else None


@node_rule("select_n", needs_static=False)
def select_of_select(node: Node, ctx: PassContext) -> Outcome:
    """select(p, select(p, x, y), z) → select(p, x, z), and the same in the other case"""
    which, *cases = node.operands
    read = [_under(which, case, i) for i, case in enumerate(cases)]
    return None if read == cases else rewrite(_select, which, *read)


def _under(which: Value, case: Value, index: int) -> Value:
    """What a case is where the condition chooses it; the outer select must be its only reader."""
    made = made_by(case, "select_n")
    if made is None or made.operands[0] is not which or not only_here(case):
        return case
    return made.operands[index + 1]


def _select(which: jax.Array, *cases: jax.Array) -> jax.Array:
    return lax.select_n(which, *cases)


RULES: Final[tuple[Rule, ...]] = (
    select_of_same,
    select_by_constant,
    select_by_not,
    select_of_truth,
    select_of_select,
)
