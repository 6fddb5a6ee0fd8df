"""Chains of convert_element_type.

A conversion loses nothing when the target holds every number that the operand may be.
Only such steps are left out: narrowing and widening again rounds, and that may be meant.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import keep, kind_of, made_by
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome


def loses_nothing(value: Value, target: Any) -> bool:
    """Whether every number that a real value may hold, by dtype or known range, is one of `target`."""
    source = value.dtype
    if source == target:
        return True
    if kind_of(source) in ("bool", "int") and kind_of(target) in ("int", "float"):
        facts = facts_of(value)
        low, high = _whole_numbers(target)
        return low <= facts.least and facts.most <= high
    return _wider_float(source, target)


@functools.cache
def _whole_numbers(dtype: Any) -> tuple[int, int]:
    """The range in which a dtype holds every whole number."""
    if kind_of(dtype) == "int":
        info = jnp.iinfo(dtype)
        return int(info.min), int(info.max)
    least_gap: int = min(2 ** (jnp.finfo(dtype).nmant + 1), int(float(jnp.finfo(dtype).max)))
    return -least_gap, least_gap


@functools.cache
def _wider_float(source: Any, target: Any) -> bool:
    if kind_of(source) != "float" or kind_of(target) != "float":
        return False
    a, b = jnp.finfo(source), jnp.finfo(target)
    return bool(a.nmant <= b.nmant and a.maxexp <= b.maxexp and a.minexp >= b.minexp)


@node_rule("convert_element_type", needs_static=False)
def convert_to_same(node: Node, ctx: PassContext) -> Outcome:
    """convert(x) to the dtype that x has → x"""
    return keep(node.operands[0], node)


@node_rule("convert_element_type", needs_static=False)
def convert_of_convert(node: Node, ctx: PassContext) -> Outcome:
    """convert(convert(x)) → convert(x), where the first conversion loses nothing; x if it has the dtype.

    Examples: bf16 → f32 → bf16 and i8 → f32 → i8 vanish, i32 → f64 → f32 becomes i32 → f32.
    Integers that come back from floats must fit, since what else they would give is not defined.
    """
    middle = node.operands[0]
    inner = made_by(middle, "convert_element_type")
    if inner is None or node.params.get("sharding") is not None or inner.params.get("sharding") is not None:
        return None
    (x,) = inner.operands
    target = node.result.dtype
    kinds = [kind_of(dtype) for dtype in (x.dtype, middle.dtype, target)]
    if "other" in kinds or kinds[1] == "bool":
        return None
    if not loses_nothing(x, middle.dtype):
        ctx.miss("convert-of-convert", node, f"{x.dtype} to {middle.dtype} may round or overflow")
        return None
    if x.dtype == target:
        return keep(x, node)
    if kind_of(target) == "complex" or not _same_meaning(x, middle, target):
        return None
    return rewrite(_convert, x, dtype=target)


def _same_meaning(x: Value, middle: Value, target: Any) -> bool:
    """Whether converting to `target` gives the same from both dtypes."""
    if kind_of(target) == "bool":
        return kind_of(x.dtype) in ("bool", "int")
    if kind_of(target) == "int" and kind_of(middle.dtype) == "float":
        return kind_of(x.dtype) != "float" and loses_nothing(x, target)
    return True


def _convert(x: jax.Array, dtype: Any) -> jax.Array:
    return lax.convert_element_type(x, dtype)


RULES: Final[tuple[Rule, ...]] = (convert_to_same, convert_of_convert)
