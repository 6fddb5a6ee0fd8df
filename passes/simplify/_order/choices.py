"""Choices of the largest: of what rises with something simpler, and of what is chosen already."""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of, number_facts
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import (
    bind,
    changed,
    is_free,
    is_spread_along,
    made_by,
    movement_rule,
)
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_RISING: Final = frozenset({"exp", "exp2", "expm1", "asinh", "sinh", "cbrt", "stop_gradient"})
"""Functions that rise and are defined everywhere; not those that soon round to a constant, as tanh does."""

_RISING_ABOVE_ZERO: Final = frozenset({"log", "sqrt", "log1p"})

_MOST_STEPS: Final = 16


@movement_rule("argmax", "argmin", level="reassociate")
def choice_of_rising(node: Node, ctx: PassContext) -> Outcome:
    """argmax(softmax(x)) → argmax(x), and of all that rises with x along the axis

    exp, sinh and the like, log and sqrt of what is not negative, sums with and quotients by what is the
    same along the axis; a negation makes argmin of argmax. Over the real numbers the same; where rounding,
    overflow or underflow makes entries equal, the choice is now the true one instead of the first of them.
    Where the input has NaN or infinities it may be another one of these.
    """
    axes = node.params["axes"]
    if len(axes) != 1 or not is_free(node) or not jnp.issubdtype(node.operands[0].dtype, np.floating):
        return None
    found = _source(node, int(axes[0]))
    if found is None:
        return None
    x, falls = found
    if not falls:
        return rewrite(bind, x, **changed(node))
    choose = "argmin" if node.op == "argmax" else "argmax"
    return rewrite(chosen, x, op=choose, axis=int(axes[0]), index_dtype=str(node.result.dtype))


def _source(node: Node, axis: int) -> tuple[Value, bool] | None:
    """What the operand of a choice rises or falls with along an axis, and whether it falls."""
    x, falls = node.operands[0], False
    for _ in range(_MOST_STEPS):
        step = _below(x, axis, node)
        if step is None:
            break
        x, turned = step
        falls = falls != turned
    return None if x is node.operands[0] else (x, falls)


def chosen(x: jax.Array, *, op: str, axis: int, index_dtype: str) -> jax.Array:
    """The place of the largest or smallest entry along an axis."""
    return (lax.argmax if op == "argmax" else lax.argmin)(x, axis, np.dtype(index_dtype))


def _below(x: Value, axis: int, node: Node) -> tuple[Value, bool] | None:
    """What a value rises or falls with along an axis, and whether it falls."""
    maker = x.node
    if maker is None or maker.context is not node.context:
        return None
    first = maker.operands[0] if maker.operands else x
    if first.shape != x.shape and maker.op not in ("add", "mul", "sub"):
        return None
    if maker.op in _RISING or maker.op == "neg":
        return first, maker.op == "neg"
    if maker.op in _RISING_ABOVE_ZERO:
        return (first, False) if facts_of(first).nonnegative else None
    return _shifted_or_scaled(maker, x, axis)


def _shifted_or_scaled(maker: Node, x: Value, axis: int) -> tuple[Value, bool] | None:
    if maker.op not in ("add", "sub", "mul", "div"):
        return None
    a, b = maker.operands
    if maker.op in ("add", "sub") and a.shape == x.shape and _is_even(b, axis, x):
        return a, False
    if maker.op == "add" and b.shape == x.shape and _is_even(a, axis, x):
        return b, False
    if maker.op == "sub" and b.shape == x.shape and _is_even(a, axis, x):
        return b, True
    if maker.op == "mul" and b.shape == x.shape and _is_positive_number(a):
        return b, False
    if maker.op == "mul" and a.shape == x.shape and _is_positive_number(b):
        return a, False
    if maker.op == "div" and a.shape == x.shape and _is_even(b, axis, x):
        return (a, False) if facts_of(b).nonnegative else None
    return None


def _is_even(value: Value, axis: int, x: Value) -> bool:
    """Whether a value is the same all along the axis."""
    if value.ndim == 0 or (value.shape[axis] == 1 and x.shape[axis] != 1):
        return True
    return is_spread_along(value, axis)


def _is_positive_number(value: Value) -> bool:
    number = number_facts(value).splat
    return number is not None and bool(np.finfo(np.float32).tiny < number < np.inf)


@movement_rule("top_k", level="reassociate")
def top_of_rising(node: Node, ctx: PassContext) -> Outcome:
    """top_k(softmax(x))[1] → top_k(x)[1]: the places alone, as in `argmax(softmax(x))`"""
    if node.results[0].uses or not is_free(node):
        return None
    if not jnp.issubdtype(node.operands[0].dtype, np.floating):
        return None
    x = _source(node, _axis(node))
    if x is None or x[1] or x[0].dtype != node.operands[0].dtype:
        return None
    return rewrite(bind, x[0], **changed(node))


@movement_rule("top_k", level="exact")
def top_of_top(node: Node, ctx: PassContext) -> Outcome:
    """top_k(top_k(x, m), k) → its first k entries, whose numbers are 0, 1, …"""
    inner = made_by(node.operands[0], node, "top_k")
    if inner is None or node.operands[0].index != 0 or _axis(inner) != _axis(node):
        return None
    return rewrite(first_of, node.operands[0], axis=_axis(node), count=int(node.params["k"]))


def _axis(node: Node) -> int:
    return int(node.params.get("axis", -1)) % node.operands[0].ndim


def _cut(shape: tuple[int, ...], axis: int, count: int) -> tuple[int, ...]:
    return (*shape[:axis], count, *shape[axis + 1 :])


def first_of(x: jax.Array, *, axis: int, count: int) -> tuple[jax.Array, jax.Array]:
    """The first entries along an axis, and their numbers."""
    part = x if count == x.shape[axis] else lax.slice(x, (0,) * x.ndim, _cut(x.shape, axis, count))
    return part, lax.broadcasted_iota(np.int32, part.shape, axis)


RULES: Final[tuple[Rule, ...]] = (choice_of_rising, top_of_rising, top_of_top)
