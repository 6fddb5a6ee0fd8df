"""Operations that keep the elements in order: reshape, squeeze, and dimensions of size one moved about."""

from __future__ import annotations

from typing import Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import (
    dropped,
    is_free,
    made_by,
    movement_rule,
    size,
    without_units,
)
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

VIEWS: Final = ("reshape", "squeeze", "broadcast_in_dim", "transpose")
"""Operations that may be a view: the same elements in the same order in another shape."""


def is_view(node: Node) -> bool:
    """Whether an operation gives its operand's elements in the same order."""
    if not is_free(node) or len(node.operands) != 1:
        return False
    if node.op == "squeeze":
        return True
    if node.op == "reshape":
        return node.params["dimensions"] is None
    shape, operand = node.result.shape, node.operands[0].shape
    if node.op == "broadcast_in_dim":
        return size(shape) == size(operand)
    moved = [d for d in node.params["permutation"] if operand[d] != 1]
    return moved == sorted(moved)


def only_moves_units(node: Node) -> bool:
    """Whether a view only adds, drops or moves dimensions of size one."""
    larger = [length for _, length in without_units(node.operands[0].shape)]
    return larger == [length for _, length in without_units(node.result.shape)]


def view(x: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
    """`x` in another shape by the plainest operation: none, squeeze, expand_dims or reshape."""
    if x.shape == shape:
        return x
    if (gone := dropped(x.shape, shape)) is not None:
        return lax.squeeze(x, gone)
    if (new := dropped(shape, x.shape)) is not None:
        return lax.expand_dims(x, new)
    return lax.reshape(x, shape)


@movement_rule(*VIEWS)
def view_to_same_shape(node: Node, ctx: PassContext) -> Outcome:
    """reshape(x, x.shape), squeeze(x, ()), a broadcast that adds nothing, the identity transpose → x"""
    (x, *more) = node.operands
    return x if not more and x.shape == node.result.shape and is_view(node) else None


@movement_rule(*VIEWS)
def view_of_view(node: Node, ctx: PassContext) -> Outcome:
    """reshape(reshape(x)), squeeze(expand_dims(x)), … → x, squeeze, expand_dims or one reshape of x

    Also transposes that only move dimensions of size one.
    """
    inner = made_by(node.operands[0], node, *VIEWS)
    if inner is None or not is_view(node) or not is_view(inner):
        return None
    x = inner.operands[0]
    return x if x.shape == node.result.shape else rewrite(view, x, shape=node.result.shape)


RULES: Final[tuple[Rule, ...]] = (view_to_same_shape, view_of_view)
