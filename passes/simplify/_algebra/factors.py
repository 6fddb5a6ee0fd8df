"""Constant factors: merged along chains, taken out of sums, given the sign of a neg."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import (
    Scalar,
    has_factor,
    is_float,
    is_int,
    is_normal,
    made_by,
    number_of,
    only_here,
)
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome


@dataclass(frozen=True)
class Scaled:
    """(top / bottom) · x, or (top / bottom) / x where `under`; both in double precision, or integers."""

    x: Value
    top: Any
    bottom: Any = 1
    under: bool = False


def scaled(node: Node) -> Scaled | None:
    """The product of a value and a constant that a mul or div node is, if it is one."""
    a, b = node.operands
    if (number := _factor(b)) is not None:
        return Scaled(a, number) if node.op == "mul" else Scaled(a, 1, number)
    if (number := _factor(a)) is not None:
        return Scaled(b, number, under=node.op == "div")
    return None


def _factor(value: Value) -> Any:
    """A constant factor: an integer, or a normal floating number."""
    number = number_of(value)
    if number is None or not (is_int(value) or (is_float(value) and is_normal(number))):
        return None
    return int(number) if is_int(value) else float(number)


# Chains


@node_rule("mul", given=has_factor, needs_static=False)
def merge_integer_factors(node: Node, ctx: PassContext) -> Outcome:
    """(x * a) * b → x * (a * b) for integers; all of it wraps alike"""
    outer = scaled(node) if is_int(node.result) else None
    inner = None if outer is None else _inner(outer.x, node, "mul")
    if outer is None or inner is None:
        return None
    return _scale(inner.x, _whole(outer.top * inner.top, node.result.dtype))


@node_rule("mul", "div", level="reassociate", given=has_factor, needs_static=False)
def merge_factors(node: Node, ctx: PassContext) -> Outcome:
    """(x * a) * b → x * (a * b), and the same with quotients, where the new factor is a normal number"""
    outer = scaled(node) if is_float(node.result) else None
    inner = None if outer is None else _inner(outer.x, node, "mul", "div")
    if outer is None or inner is None:
        return None
    if outer.under:
        top, bottom = outer.top * inner.bottom, outer.bottom * inner.top
    else:
        top, bottom = outer.top * inner.top, outer.bottom * inner.bottom
    return _write(Scaled(inner.x, top, bottom, inner.under != outer.under), node, ctx)


def _inner(value: Value, node: Node, *ops: str) -> Scaled | None:
    made = made_by(value, *ops)
    found = None if made is None or not only_here(value) else scaled(made)
    return None if found is None or found.x.shape != node.result.shape else found


def _write(product: Scaled, node: Node, ctx: PassContext) -> Outcome:
    dtype = node.result.dtype
    divides = product.top == 1 and not product.under
    with np.errstate(all="ignore"):
        number = product.bottom if divides else np.float64(product.top) / np.float64(product.bottom)
        factor = Scalar(number, dtype)
    if not is_normal(factor.array):
        ctx.miss("merge-factors", node, "the product of the constants overflows or underflows")
        return None
    if product.under:
        return rewrite(_under_constant, product.x, scalar=factor)
    return rewrite(_over_constant, product.x, scalar=factor) if divides else _scale(product.x, factor)


# Sums of multiples


@node_rule("add", "add_any", "sub", needs_static=False)
def common_integer_factor(node: Node, ctx: PassContext) -> Outcome:
    """x * a + x * b → x * (a + b), x + x * b → x * (1 + b), and differences, for integers"""
    if not is_int(node.result):
        return None
    found = _multiples(node)
    return None if found is None else _scale(found[0], _whole(found[1], node.result.dtype))


@node_rule("add", "add_any", "sub", level="reassociate", needs_static=False)
def common_factor(node: Node, ctx: PassContext) -> Outcome:
    """x * a + x * b → x * (a + b), x + x * b → x * (1 + b), and differences.

    Products that are also read elsewhere stay: programs that split numbers in halves use them so.
    """
    if not is_float(node.result):
        return None
    found = _multiples(node)
    if found is None:
        return None
    factor = Scalar(found[1], node.result.dtype)
    return _scale(found[0], factor) if is_normal(factor.array) else None


def _multiples(node: Node) -> tuple[Value, Any] | None:
    """x and the sum of both factors, where the node adds multiples of one x."""
    a, b = node.operands
    if not any(x is y for x in _parts(a) for y in _parts(b)):
        return None
    left, right = _multiple(a), _multiple(b)
    both = left.x is not a or right.x is not b
    if left.x is right.x and both and left.x.shape == node.result.shape:
        return left.x, left.top + right.top if node.op != "sub" else left.top - right.top
    if left.x is b and left.x is not a and b.shape == node.result.shape:
        return b, left.top + 1 if node.op != "sub" else left.top - 1
    if right.x is a and right.x is not b and a.shape == node.result.shape:
        return a, 1 + right.top if node.op != "sub" else 1 - right.top
    return None


def _parts(value: Value) -> tuple[Value, ...]:
    """What a value may be a multiple of."""
    made = made_by(value, "mul")
    return (value,) if made is None or not only_here(value) else (value, *made.operands)


def _multiple(value: Value) -> Scaled:
    """A value as a multiple of another that only this reads, or of itself."""
    made = made_by(value, "mul")
    found = scaled(made) if made is not None and only_here(value) else None
    return Scaled(value, 1) if found is None else found


# Signs


@node_rule("mul", "div", given=has_factor, needs_static=False)
def neg_into_factor(node: Node, ctx: PassContext) -> Outcome:
    """(-x) * c → x * (-c), (-x) / c → x / (-c), c / (-x) → (-c) / x; of quotients only real ones"""
    outer = scaled(node)
    inner = None if outer is None else made_by(outer.x, "neg")
    if outer is None or inner is None or inner.operands[0].shape != node.result.shape:
        return None
    return _negated(node, outer, inner.operands[0])


@node_rule("neg", needs_static=False)
def neg_of_factor(node: Node, ctx: PassContext) -> Outcome:
    """-(x * c) → x * (-c), -(x / c) → x / (-c), -(c / x) → (-c) / x; of quotients only real ones"""
    inner = made_by(node.operands[0], "mul", "div")
    product = None if inner is None or not only_here(inner.result) else scaled(inner)
    if inner is None or product is None or product.x.shape != node.result.shape:
        return None
    return _negated(inner, product, product.x)


def _negated(node: Node, product: Scaled, x: Value) -> Outcome:
    dtype = node.result.dtype
    if is_int(node.result):
        return _scale(x, _whole(-product.top, dtype)) if node.op == "mul" else None
    if node.op == "mul":
        return _scale(x, Scalar(-product.top, dtype))
    if product.under:
        return rewrite(_under_constant, x, scalar=Scalar(-product.top, dtype))
    return rewrite(_over_constant, x, scalar=Scalar(-product.bottom, dtype))


# Replacements


def _whole(number: int, dtype: Any) -> Scalar:
    return Scalar(np.asarray(number % 2**64, np.uint64), dtype)


def _scale(x: Value, factor: Scalar) -> Outcome:
    return rewrite(_times_constant, x, scalar=factor)


def _times_constant(x: jax.Array, scalar: Scalar) -> jax.Array:
    return lax.mul(x, scalar.array)


def _over_constant(x: jax.Array, scalar: Scalar) -> jax.Array:
    return lax.div(x, scalar.array)


def _under_constant(x: jax.Array, scalar: Scalar) -> jax.Array:
    return lax.div(scalar.array, x)


RULES: Final[tuple[Rule, ...]] = (
    merge_integer_factors,
    merge_factors,
    common_integer_factor,
    common_factor,
    neg_into_factor,
    neg_of_factor,
)
