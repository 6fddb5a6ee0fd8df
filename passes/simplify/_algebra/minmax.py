"""Greatest and least: max, min, clamp.

JAX splits the derivative of max and min evenly where both operands are equal, and that of
clamp is zero at its ends. So a bound that x may meet is not dropped for floating numbers,
though it would not change the value.
"""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import (
    Scalar,
    is_discrete,
    is_float,
    keep,
    kind_of,
    made_by,
    number_of,
    only_here,
    orders,
)
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome


@node_rule("max", "min", needs_static=False)
def max_of_same(node: Node, ctx: PassContext) -> Outcome:
    """max(x, x) → x, min(x, x) → x"""
    x, y = node.operands
    return keep(x, node) if x is y else None


@node_rule("max", "min", needs_static=False)
def max_of_ordered(node: Node, ctx: PassContext) -> Outcome:
    """max(x, y) → x, where x is known to be greater than y and y not to be NaN; min likewise.

    Floats must be strictly greater, or y infinite: where they are equal the derivatives differ.
    """
    if kind_of(node.result.dtype) not in ("int", "bool", "float"):
        return None
    for x, y in orders(node):
        if _is_lowest(y, node.op) or (_may_beat(x, y) and _beats(x, y, node.op)):
            return keep(x, node)
    return None


def _is_lowest(y: Value, op: str) -> bool:
    return bool(is_float(y) and number_of(y) == (-np.inf if op == "max" else np.inf))


def _may_beat(x: Value, y: Value) -> bool:
    """False for what no number is beaten by, before all that x is made of is looked at."""
    return not any(is_float(v) and (n := number_of(v)) is not None and not np.isfinite(n) for v in (x, y))


def _beats(x: Value, y: Value, op: str) -> bool:
    a, b = facts_of(x), facts_of(y)
    least, most = (a.least, b.most) if op == "max" else (b.least, a.most)
    if is_discrete(x):
        return least >= most
    return b.no_nan and (least > most or b.splat == (-np.inf if op == "max" else np.inf))


@node_rule("max", "min", needs_static=False)
def max_of_max(node: Node, ctx: PassContext) -> Outcome:
    """max(max(x, y), y) → max(x, y), for integers and booleans; min likewise"""
    if not is_discrete(node.result):
        return None
    for inner, y in orders(node):
        made = made_by(inner, node.op)
        if made is not None and y in made.operands:
            return keep(inner, node)
    return None


@node_rule("max", "min", needs_static=False)
def merge_bounds(node: Node, ctx: PassContext) -> Outcome:
    """max(max(x, a), b) → max(x, b), where the constant b is greater than a; min likewise"""
    if not (is_float(node.result) or is_discrete(node.result)):
        return None
    for inner, bound in orders(node):
        made, b = made_by(inner, node.op), number_of(bound)
        if made is None or b is None or not only_here(inner) or b != b:
            continue
        for x, other in orders(made):
            a = number_of(other)
            if a is not None and x.shape == node.result.shape and (a < b if node.op == "max" else a > b):
                return rewrite(_greatest if node.op == "max" else _least, x, bound)
    return None


def _greatest(x: jax.Array, y: jax.Array) -> jax.Array:
    return lax.max(x, y)


def _least(x: jax.Array, y: jax.Array) -> jax.Array:
    return lax.min(x, y)


@node_rule("clamp", needs_static=False)
def clamp_of_inside(node: Node, ctx: PassContext) -> Outcome:
    """clamp(a, x, b) → x, where x is known to lie between; floats strictly, or the ends are infinite"""
    low, x, high = node.operands
    a, f, b = facts_of(low), facts_of(x), facts_of(high)
    if not (a.no_nan and b.no_nan) or kind_of(x.dtype) not in ("int", "bool", "float"):
        return None
    if is_discrete(x):
        inside = a.most <= f.least and f.most <= b.least
    else:
        above = a.most < f.least or a.splat == -np.inf
        inside = above and (f.most < b.least or b.splat == np.inf)
    return keep(x, node) if inside else None


@node_rule("clamp", needs_static=False)
def clamp_of_clamp(node: Node, ctx: PassContext) -> Outcome:
    """clamp(a, clamp(c, x, d), b) → clamp(c', x, d'), all of them constants; c' and d' are c and d clamped"""
    low, inner, high = node.operands
    made = made_by(inner, "clamp")
    if made is None or not only_here(inner) or not (is_float(inner) or is_discrete(inner)):
        return None
    a, b, c, d = (number_of(v) for v in (low, high, made.operands[0], made.operands[2]))
    if any(v is None for v in (a, b, c, d)) or not (a <= b and c <= d):
        return None
    if len({math.copysign(1.0, float(v)) for v in (a, b, c, d) if v == 0}) > 1:
        return None
    bounds = {"low": Scalar(min(max(c, a), b), inner.dtype), "high": Scalar(min(max(d, a), b), inner.dtype)}
    return rewrite(_clamp, made.operands[1], **bounds)


def _clamp(x: Any, low: Scalar, high: Scalar) -> jax.Array:
    return lax.clamp(low.array, x, high.array)


RULES: Final[tuple[Rule, ...]] = (
    max_of_same,
    max_of_ordered,
    max_of_max,
    merge_bounds,
    clamp_of_inside,
    clamp_of_clamp,
)
