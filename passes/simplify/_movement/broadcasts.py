"""Broadcasts: of broadcasts, of views, viewed or transposed, and those that an operation does by itself."""

from __future__ import annotations

from typing import Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import (
    bind,
    changed,
    is_free,
    made_by,
    movement_rule,
    place,
    size,
    used_once,
    without_units,
)
from lepton_jax.passes.simplify._movement.views import VIEWS, is_view, only_moves_units
from lepton_jax.rewrite import PassContext, Rewrite, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

ELEMENTWISE: Final = frozenset(
    {
        "add",
        "sub",
        "mul",
        "div",
        "rem",
        "max",
        "min",
        "pow",
        "atan2",
        "nextafter",
        "and",
        "or",
        "xor",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    }
)
"""Operations on two arrays of one shape either of which may be a scalar instead."""


def broadcast(x: jax.Array, *, shape: tuple[int, ...], dims: tuple[int, ...]) -> jax.Array:
    """`x` with its dimensions at `dims` of `shape`, repeated along the others."""
    return lax.broadcast_in_dim(x, shape, dims)


def broadcast_of(value: Value, node: Node) -> Node | None:
    """The broadcast of static shape that makes `value` for `node`, if there is one."""
    maker = made_by(value, node, "broadcast_in_dim")
    return maker if maker is not None and len(maker.operands) == 1 and is_free(maker) else None


def spread(x: Value, shape: tuple[int, ...], where: dict[int, int]) -> Rewrite | None:
    """The broadcast of `x` to `shape` with its dimensions larger than one at `where`."""
    dims = place(x.shape, where, len(shape))
    return None if dims is None else rewrite(broadcast, x, shape=shape, dims=dims)


@movement_rule("broadcast_in_dim")
def broadcast_of_broadcast(node: Node, ctx: PassContext) -> Outcome:
    """broadcast_in_dim(broadcast_in_dim(x)) → broadcast_in_dim(x), expand_dims among them"""
    inner = broadcast_of(node.operands[0], node)
    if inner is None or len(node.operands) != 1 or not is_free(node):
        return None
    outer = node.params["broadcast_dimensions"]
    dims = tuple(outer[d] for d in inner.params["broadcast_dimensions"])
    return rewrite(broadcast, inner.operands[0], shape=node.result.shape, dims=dims)


@movement_rule("broadcast_in_dim")
def broadcast_of_unit_view(node: Node, ctx: PassContext) -> Outcome:
    """broadcast_in_dim(squeeze(x)) → broadcast_in_dim(x), where the dropped dimensions have a place

    Likewise for a reshape or transpose that only adds, drops or moves dimensions of size one.
    """
    inner = made_by(node.operands[0], node, "squeeze", "reshape", "transpose")
    if inner is None or len(node.operands) != 1 or not is_free(node):
        return None
    if not is_view(inner) or not only_moves_units(inner):
        return None
    x = inner.operands[0]
    outer = node.params["broadcast_dimensions"]
    pairs = zip(without_units(x.shape), without_units(inner.result.shape), strict=True)
    return spread(x, node.result.shape, {d: outer[mid] for (d, _), (mid, _) in pairs})


@movement_rule(*VIEWS)
def unit_view_of_broadcast(node: Node, ctx: PassContext) -> Outcome:
    """squeeze(broadcast_in_dim(x)) → broadcast_in_dim(x) to the squeezed shape; also expand_dims

    A scalar's broadcast may be reshaped at will.
    """
    inner = broadcast_of(node.operands[0], node)
    if inner is None or not is_view(node):
        return None
    x, shape = inner.operands[0], node.result.shape
    if x.ndim == 0:
        return rewrite(broadcast, x, shape=shape, dims=())
    if not only_moves_units(node):
        return None
    pairs = zip(without_units(inner.result.shape), without_units(shape), strict=True)
    new = {mid: out for (mid, _), (out, _) in pairs}
    held = inner.params["broadcast_dimensions"]
    return spread(x, shape, {d: new[held[d]] for d, _ in without_units(x.shape)})


def transposed_broadcast(
    x: jax.Array, *, order: tuple[int, ...], shape: tuple[int, ...], dims: tuple[int, ...]
) -> jax.Array:
    """`x` transposed, then broadcast."""
    return lax.broadcast_in_dim(lax.transpose(x, order), shape, dims)


@movement_rule("transpose")
def transpose_of_broadcast(node: Node, ctx: PassContext) -> Outcome:
    """transpose(broadcast_in_dim(x)) → broadcast_in_dim(x), or of transpose(x), which moves less"""
    inner = broadcast_of(node.operands[0], node)
    if inner is None:
        return None
    x, shape = inner.operands[0], node.result.shape
    permutation = node.params["permutation"]
    dims = [permutation.index(d) for d in inner.params["broadcast_dimensions"]]
    if (kept := spread(x, shape, dict(enumerate(dims)))) is not None:
        return kept
    if not used_once(inner.result) or size(x.shape) >= size(shape):
        return None
    order = tuple(sorted(range(x.ndim), key=dims.__getitem__))
    return rewrite(transposed_broadcast, x, order=order, shape=shape, dims=tuple(sorted(dims)))


@movement_rule("tile")
def tile_of_units(node: Node, ctx: PassContext) -> Outcome:
    """tile(x, (1, n, 1)) → broadcast_in_dim(x), where all that is repeated has size one"""
    (x,), repeats = node.operands, node.params["reps"]
    repeated = [d for d, n in enumerate(repeats) if n != 1]
    if len(repeats) != x.ndim or not repeated or any(x.shape[d] != 1 for d in repeated):
        return None
    return rewrite(broadcast, x, shape=node.result.shape, dims=tuple(range(x.ndim)))


def _scalar(value: Value, node: Node) -> Value | None:
    """The scalar that `value` repeats."""
    inner = broadcast_of(value, node)
    return inner.operands[0] if inner is not None and inner.operands[0].ndim == 0 else None


@movement_rule(*sorted(ELEMENTWISE))
def elementwise_with_broadcast_scalar(node: Node, ctx: PassContext) -> Outcome:
    """mul(x, broadcast_in_dim(scalar)) → mul(x, scalar), which repeats it by itself"""
    left, right = node.operands
    if left.shape != right.shape:
        return None
    if (scalar := _scalar(right, node)) is not None:
        return rewrite(bind, left, scalar, **changed(node))
    if (scalar := _scalar(left, node)) is not None:
        return rewrite(bind, scalar, right, **changed(node))
    return None


@movement_rule("select_n")
def select_by_broadcast_scalar(node: Node, ctx: PassContext) -> Outcome:
    """select_n(broadcast_in_dim(p), x, y) → select_n(p, x, y) for a scalar p"""
    scalar = _scalar(node.operands[0], node)
    return None if scalar is None else rewrite(bind, scalar, *node.operands[1:], **changed(node))


RULES: Final[tuple[Rule, ...]] = (
    broadcast_of_broadcast,
    broadcast_of_unit_view,
    unit_view_of_broadcast,
    transpose_of_broadcast,
    tile_of_units,
    elementwise_with_broadcast_scalar,
    select_by_broadcast_scalar,
)
