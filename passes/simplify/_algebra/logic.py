"""Logic on booleans and on the bits of integers: and, or, xor, not."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import (
    fill,
    is_discrete,
    keep,
    made_by,
    number_facts,
    number_of,
    orders,
)
from lepton_jax.passes.simplify._algebra.patterns import identity
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite, rule
from lepton_jax.rewrite.rule import Outcome


def _has_all_bits(value: Value) -> bool:
    number = number_of(value) if is_discrete(value) else None
    return number is not None and bool(~number == 0)


def _has_no_bits(value: Value) -> bool:
    return is_discrete(value) and number_facts(value).is_zero


@node_rule("and", "or", needs_static=False)
def logic_of_same(node: Node, ctx: PassContext) -> Outcome:
    """x & x → x, x | x → x"""
    x, y = node.operands
    return keep(x, node) if x is y else None


@node_rule("and", needs_static=False)
def and_with_constant(node: Node, ctx: PassContext) -> Outcome:
    """x & 0 → 0, x & ~0 → x (of booleans: false and true)"""
    for x, y in orders(node):
        if _has_no_bits(y):
            return fill(node, 0)
        if _has_all_bits(y):
            return keep(x, node)
    return None


@node_rule("or", needs_static=False)
def or_with_constant(node: Node, ctx: PassContext) -> Outcome:
    """x | 0 → x, x | ~0 → ~0 (of booleans: false and true)"""
    for x, y in orders(node):
        if _has_no_bits(y):
            return keep(x, node)
        if _has_all_bits(y):
            return keep(y, node)
    return None


@node_rule("xor", needs_static=False)
def xor_with_constant(node: Node, ctx: PassContext) -> Outcome:
    """x ^ 0 → x, x ^ ~0 → ~x (of booleans: false and true)"""
    for x, y in orders(node):
        if _has_no_bits(y):
            return keep(x, node)
        if _has_all_bits(y) and x.shape == node.result.shape:
            return rewrite(lax.bitwise_not, x)
    return None


@node_rule("xor", needs_static=False)
def xor_of_same(node: Node, ctx: PassContext) -> Outcome:
    """x ^ x → 0"""
    x, y = node.operands
    return fill(node, 0) if x is y and is_discrete(x) else None


@node_rule("and", "or", "xor", needs_static=False)
def logic_with_not(node: Node, ctx: PassContext) -> Outcome:
    """x & ~x → 0, x | ~x → ~0, x ^ ~x → ~0"""
    for x, y in orders(node):
        inner = made_by(y, "not")
        if inner is not None and inner.operands[0] is x and is_discrete(x):
            return fill(node, 0 if node.op == "and" else ~np.zeros((), x.dtype))
    return None


@node_rule("and", "or", needs_static=False)
def absorb(node: Node, ctx: PassContext) -> Outcome:
    """x & (x | y) → x, x | (x & y) → x, x & (x & y) → x & y, x | (x | y) → x | y"""
    for x, y in orders(node):
        inner = made_by(y, "and", "or")
        if inner is not None and x in inner.operands:
            return keep(y if inner.op == node.op else x, node)
    return None


def one_boolean() -> list[list[Any]]:
    """One array of booleans."""
    return [[jax.ShapeDtypeStruct((2, 3), jnp.bool_)]]


@rule(one_boolean, single_use=False)
def not_of_not(x: Any) -> Any:
    """~(~x) → x"""
    return lax.bitwise_not(lax.bitwise_not(x))


RULES: Final[tuple[Rule, ...]] = (
    logic_of_same,
    and_with_constant,
    or_with_constant,
    xor_with_constant,
    xor_of_same,
    logic_with_not,
    absorb,
    not_of_not.replacement(identity),
)
