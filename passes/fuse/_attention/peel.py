"""Scores from which a number for each row is subtracted twice, as where a softmax is made safe by hand."""

from __future__ import annotations

from typing import Any, Final

from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.cutting import Limits
from lepton_jax.passes.fuse._attention.path import is_row
from lepton_jax.rewrite import PassContext, erase_dead, rewrite
from lepton_jax.rewrite.replacement import write_before

RULE: Final = "attention-shift"


def peel(exp: Node, ctx: PassContext, limits: Limits) -> None:
    """exp((x - a) - b) → exp(x - (a + b)), and max(x - a) → max(x) - a, for rows a and b."""
    outer = exp.operands[0].node
    inner = None if outer is None or outer.op != "sub" else outer.operands[0].node
    if outer is None or inner is None or inner.op != "sub" or not exp.result.is_static:
        return
    x, first = inner.operands
    second, shape = outer.operands[1], exp.result.shape
    if x.shape != shape or inner.result.shape != shape:
        return
    few = min(limits.masked, limits.open)
    keys = [d for d, n in enumerate(shape) if n >= few and is_row(first, d) and is_row(second, d)]
    if len(keys) != 1 or not _is_thin(first, keys[0]) or not _is_thin(second, keys[0]):
        return
    if not ctx.fire(RULE, exp):
        return
    for user in list(inner.result.users()):
        if user.op == "reduce_max" and [int(a) for a in user.params["axes"]] == keys:
            (top,) = write_before(rewrite(_top, x, first, key=keys[0]), user, RULE)
            user.result.replace_uses(top)
            erase_dead(user)
    (power,) = write_before(rewrite(_power, x, first, outer.operands[1]), exp, RULE)
    exp.result.replace_uses(power)
    for node in (exp, outer, inner):
        if node.alive:
            erase_dead(node)


def _is_thin(value: Value, key: int) -> bool:
    """Whether a value has one key, and the others axes of the scores."""
    return value.ndim > key and value.shape[key] == 1


def _top(x: Any, row: Any, *, key: int) -> Any:
    return lax.reduce_max(x, (key,)) - lax.squeeze(row, (key,))


def _power(x: Any, first: Any, second: Any) -> Any:
    return lax.exp(x - (first + second))
