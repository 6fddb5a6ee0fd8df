"""Dynamic slices and updates at places that are known, or all over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import bind, changed, made_by, movement_rule
from lepton_jax.passes.simplify._movement.slices import take
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome


@movement_rule("dynamic_slice")
def dynamic_slice_of_everything(node: Node, ctx: PassContext) -> Outcome:
    """dynamic_slice(x, i, x.shape) → x, wherever i is: starts are clamped"""
    x = node.operands[0]
    return x if x.shape == node.result.shape else None


@movement_rule("dynamic_slice")
def dynamic_slice_at_constant(node: Node, ctx: PassContext) -> Outcome:
    """dynamic_slice(x, 2, n) → x[2:2 + n], the start clamped as JAX does"""
    x, *starts = node.operands
    shape = node.result.shape
    if len(starts) != x.ndim:  # dynamic slice sizes
        return None
    given = [_number(start) for start in starts]
    start = []
    for first, wide, length in zip(given, x.shape, shape, strict=True):
        if first is None and wide != length:
            return None
        start.append(min(max(first or 0, 0), wide - length))
    limit = tuple(first + length for first, length in zip(start, shape, strict=True))
    return rewrite(take, x, start=tuple(start), limit=limit)


@movement_rule("dynamic_update_slice")
def update_of_everything(node: Node, ctx: PassContext) -> Outcome:
    """dynamic_update_slice(x, u, i) → u of x's shape, x for u without elements"""
    x, update = node.operands[:2]
    if update.shape == x.shape:
        return update
    return x if 0 in update.shape else None


@movement_rule("dynamic_slice")
def slice_of_update(node: Node, ctx: PassContext) -> Outcome:
    """dynamic_slice(dynamic_update_slice(x, u, i), i) → u"""
    inner = made_by(node.operands[0], node, "dynamic_update_slice")
    if inner is None or inner.operands[1].shape != node.result.shape:
        return None
    return inner.operands[1] if _same_places(inner.operands[2:], node.operands[1:]) else None


@movement_rule("dynamic_update_slice")
def update_of_update(node: Node, ctx: PassContext) -> Outcome:
    """Two updates of one place → the second

    dynamic_update_slice(dynamic_update_slice(x, u, i), v, i) → dynamic_update_slice(x, v, i) for u
    and v of one shape.
    """
    inner = made_by(node.operands[0], node, "dynamic_update_slice")
    if inner is None or inner.operands[1].shape != node.operands[1].shape:
        return None
    if not _same_places(inner.operands[2:], node.operands[2:]):
        return None
    return rewrite(bind, inner.operands[0], *node.operands[1:], **changed(node))


def _number(value: Value) -> int | None:
    """The integer that a scalar constant is."""
    if not value.is_const:
        return None
    array: Any = _jax.plain_constant(value.const)
    return None if array is None else int(array)


def _same_places(first: Sequence[Value], second: Sequence[Value]) -> bool:
    if len(first) != len(second):
        return False
    for a, b in zip(first, second, strict=True):
        if a is not b and (_number(a) is None or _number(a) != _number(b)):
            return False
    return True


RULES: Final[tuple[Rule, ...]] = (
    dynamic_slice_of_everything,
    dynamic_slice_at_constant,
    slice_of_update,
    update_of_everything,
    update_of_update,
)
