"""Powers and roots: pow, integer_pow, square, sqrt, rsqrt."""

from __future__ import annotations

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._algebra.operands import (
    fill,
    is_discrete,
    is_float,
    keep,
    kind_of,
    made_by,
    number_of,
    only_here,
)
from lepton_jax.passes.simplify._algebra.patterns import is_above_minus_infinity, is_real, one_float
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite, rule
from lepton_jax.rewrite.rule import Outcome

_MOST_FACTORS: Final = 4
"""Powers up to this one are written as products: each product adds half a unit of rounding."""


@node_rule("pow", needs_static=False)
def pow_zero(node: Node, ctx: PassContext) -> Outcome:
    """x ^ 0 → 1 (also of NaN), for real numbers"""
    return fill(node, 1) if is_float(node.result) and _exponent(node) == 0 else None


@node_rule("pow", needs_static=False)
def pow_one(node: Node, ctx: PassContext) -> Outcome:
    """x ^ 1 → x, for real numbers"""
    return keep(node.operands[0], node) if is_float(node.result) and _exponent(node) == 1 else None


@node_rule("pow", level="reassociate", needs_static=False)
def pow_of_constant_exponent(node: Node, ctx: PassContext) -> Outcome:
    """x ^ n → a product or a quotient, x ^ (n + 1/2) → a product with a root, for small constant exponents.

    pow costs some 13 times as much on a CPU. Zeros and infinities are those of pow, but for the sign of zero
    where the operand is known not to be negative. The derivative stays that of pow: a product with a root
    has none at zero by itself.
    """
    x = node.operands[0]
    exponent = _exponent(node) if is_float(node.result) and x.shape == node.result.shape else None
    if exponent is None or exponent in (0, 1):
        return None
    if not abs(exponent) < _MOST_FACTORS + 1 or not float(2 * exponent).is_integer():
        ctx.miss("pow-of-constant-exponent", node, f"the exponent {exponent} is no small multiple of 1/2")
        return None
    if float(exponent).is_integer():
        return rewrite(_whole_power, x, exponent=int(exponent))
    return rewrite(_half_power, x, twice=int(2 * exponent), is_signed=not facts_of(x).nonnegative)


def _exponent(node: Node) -> float | None:
    number = number_of(node.operands[1])
    return None if number is None or np.iscomplexobj(number) else float(number)


def _whole_power(x: jax.Array, exponent: int) -> jax.Array:
    """x ^ exponent; of negative ones the reciprocal comes first, since the power might underflow."""
    if exponent == 2:
        return lax.square(x)
    if exponent > 0:
        return x if exponent == 1 else lax.integer_pow(x, exponent)
    return _whole_power(_reciprocal(x), -exponent)


def _reciprocal(x: jax.Array) -> jax.Array:
    return lax.div(np.ones((), x.dtype), x)


def _half_power(x: jax.Array, twice: int, is_signed: bool) -> jax.Array:
    if abs(twice) == 1 and not is_signed:
        return lax.sqrt(x) if twice == 1 else lax.rsqrt(x)
    return half_power(x, twice, is_signed)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def half_power(x: jax.Array, twice: int, is_signed: bool) -> jax.Array:
    """x ^ (twice / 2) for odd `twice`, as a product with a root.

    Its derivative is that of the power: the product rule would give 0 * inf at zero.

    Args:
        is_signed: whether x may be -0 or -inf, of which a root is -0 or NaN: a power with a fraction is that
            of 0 or inf (C99, F.10.4.4).
    """
    if is_signed:
        x = lax.select(lax.eq(x + x, x), lax.abs(x), x)  # only zeros and infinities are twice themselves
    root = lax.sqrt(x) if twice > 0 else lax.rsqrt(x)
    whole = (abs(twice) - 1) // 2
    if whole == 0:
        return root
    return lax.mul(_whole_power(x, whole if twice > 0 else -whole), root)


@half_power.defjvp
def _half_power_jvp(twice: int, is_signed: bool, primals: tuple[Any], tangents: tuple[Any]) -> Any:
    (x,), (dx,) = primals, tangents
    slope = lax.mul(np.asarray(twice / 2, x.dtype), _half_power(x, twice - 2, is_signed))
    return half_power(x, twice, is_signed), lax.mul(dx, slope)


@node_rule("integer_pow", needs_static=False)
def integer_pow_zero(node: Node, ctx: PassContext) -> Outcome:
    """x ^ 0 → 1"""
    return fill(node, 1) if node.params["y"] == 0 and kind_of(node.result.dtype) != "other" else None


@node_rule("integer_pow", needs_static=False)
def integer_pow_one(node: Node, ctx: PassContext) -> Outcome:
    """x ^ 1 → x"""
    return keep(node.operands[0], node) if node.params["y"] == 1 else None


@node_rule("integer_pow", needs_static=False)
def integer_pow_two(node: Node, ctx: PassContext) -> Outcome:
    """integer_pow(x, 2) → square(x), the same product; complex squares round otherwise, and stay"""
    if node.params["y"] != 2 or kind_of(node.result.dtype) == "complex":
        return None
    return rewrite(lax.square, *node.operands)


@node_rule("integer_pow", needs_static=False)
def integer_pow_minus_one(node: Node, ctx: PassContext) -> Outcome:
    """integer_pow(x, -1) → 1 / x, for real numbers; the same quotient"""
    return rewrite(_reciprocal, *node.operands) if node.params["y"] == -1 and is_float(node.result) else None


@node_rule("integer_pow", "square", needs_static=False)
def integer_power_of_power(node: Node, ctx: PassContext) -> Outcome:
    """(x ^ a) ^ b → x ^ (a * b), for integers and a, b > 0; all of it wraps alike"""
    return _nested(node) if is_discrete(node.result) else None


@node_rule("integer_pow", "square", level="reassociate", needs_static=False)
def power_of_power(node: Node, ctx: PassContext) -> Outcome:
    """(x ^ a) ^ b → x ^ (a * b), for a, b > 0"""
    return _nested(node)


def _nested(node: Node) -> Outcome:
    inner = made_by(node.operands[0], "integer_pow", "square")
    if inner is None or not only_here(inner.result):
        return None
    a, b = _power(inner), _power(node)
    return rewrite(lax.integer_pow, inner.operands[0], y=a * b) if a > 0 and b > 0 else None


def _power(node: Node) -> int:
    return 2 if node.op == "square" else int(node.params["y"])


@node_rule("integer_pow", "square", needs_static=False)
def even_power_of_sign(node: Node, ctx: PassContext) -> Outcome:
    """(-x)² → x², |x|² → x², and other even powers"""
    inner = made_by(node.operands[0], "neg", "abs")
    if inner is None or _power(node) % 2 or inner.operands[0].dtype != node.result.dtype:
        return None
    (x,) = inner.operands
    return rewrite(lax.square, x) if node.op == "square" else rewrite(lax.integer_pow, x, y=_power(node))


@node_rule("square", level="reassociate", needs_static=False)
def square_of_sqrt(node: Node, ctx: PassContext) -> Outcome:
    """sqrt(x)² → x, where x is known to be positive (below zero it is NaN, at zero it has no slope)"""
    inner = made_by(node.operands[0], "sqrt")
    return None if inner is None else _positive_root(inner, node, ctx)


@node_rule("mul", level="reassociate", needs_static=False)
def sqrt_times_sqrt(node: Node, ctx: PassContext) -> Outcome:
    """sqrt(x) * sqrt(x) → x, where x is known to be positive"""
    a, b = node.operands
    inner = made_by(a, "sqrt") if a is b else None
    return None if inner is None else _positive_root(inner, node, ctx)


def _positive_root(root: Node, node: Node, ctx: PassContext) -> Outcome:
    (x,) = root.operands
    if not is_float(x):
        return None
    if not facts_of(x).positive:
        ctx.miss("square-of-sqrt", node, "the number under the root may be zero or negative")
        return None
    return keep(x, node)


@rule(one_float, level="reassociate")
def reciprocal_of_sqrt(x: Any) -> Any:
    """1 / sqrt(x) → rsqrt(x), for real numbers"""
    return 1.0 / jnp.sqrt(x)


@rule(one_float, level="reassociate")
def reciprocal_of_rsqrt(x: Any) -> Any:
    """1 / rsqrt(x) → sqrt(x), for real numbers"""
    return 1.0 / lax.rsqrt(x)


@rule(one_float, level="reassociate")
def sqrt_of_reciprocal(x: Any) -> Any:
    """sqrt(1 / x) → rsqrt(x), for real numbers that are known not to be -inf"""
    return jnp.sqrt(1.0 / x)


RULES: Final[tuple[Rule, ...]] = (
    pow_zero,
    pow_one,
    pow_of_constant_exponent,
    integer_pow_zero,
    integer_pow_one,
    integer_pow_two,
    integer_pow_minus_one,
    even_power_of_sign,
    integer_power_of_power,
    power_of_power,
    square_of_sqrt,
    sqrt_times_sqrt,
    reciprocal_of_sqrt.where(is_real).replacement(lax.rsqrt),
    reciprocal_of_rsqrt.where(is_real).replacement(lax.sqrt),
    sqrt_of_reciprocal.where(is_above_minus_infinity).replacement(lax.rsqrt),
)
