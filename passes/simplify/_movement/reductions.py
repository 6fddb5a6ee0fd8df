"""Reductions of transposes, of broadcasts and over dimensions of size one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.broadcasts import broadcast_of
from lepton_jax.passes.simplify._movement.common import (
    bind,
    changed,
    is_free,
    made_by,
    movement_rule,
    size,
    used_once,
)
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_SELECTING: Final = ("reduce_max", "reduce_min", "reduce_and", "reduce_or")
"""Reductions that give one of their elements, so that repeating one does not matter."""

_ARITHMETIC: Final = ("reduce_sum", "reduce_prod")

_REORDERABLE: Final = (*_SELECTING, *_ARITHMETIC, "reduce_xor")


def _rounds(value: Value) -> bool:
    """Whether arithmetic in the value's dtype depends on the order."""
    return not (np.issubdtype(value.dtype, np.integer) or value.dtype == np.bool_)


# Of transposes


def _of_transpose(node: Node) -> tuple[Value, tuple[int, ...], bool] | None:
    """The transpose's operand, the axes there, and whether these stay in order, if the kept ones do."""
    inner = made_by(node.operands[0], node, "transpose")
    if inner is None or not is_free(node):
        return None
    permutation, axes = inner.params["permutation"], node.params["axes"]
    kept = [d for i, d in enumerate(permutation) if i not in axes]
    if kept != sorted(kept):
        return None
    gone = [permutation[axis] for axis in sorted(axes)]
    return inner.operands[0], tuple(sorted(gone)), gone == sorted(gone)


@movement_rule(*_REORDERABLE, "argmax", "argmin")
def reduction_of_transpose(node: Node, ctx: PassContext) -> Outcome:
    """reduce_max(transpose(x), axes) → reduce_max(x, the axes there), where the kept ones stay in order

    Sums and products of floating-point numbers are for the next rule; so is anything whose elements
    would be met in another order.
    """
    found = _of_transpose(node)
    if found is None or (_rounds(node.results[0]) and (node.op in _ARITHMETIC or not found[2])):
        return None
    return rewrite(bind, found[0], **changed(node, axes=found[1]))


@movement_rule(*_SELECTING, *_ARITHMETIC, level="reassociate")
def float_reduction_of_transpose(node: Node, ctx: PassContext) -> Outcome:
    """reduce_sum(transpose(x), axes) → reduce_sum(x, the axes there), in another order"""
    found = _of_transpose(node)
    return None if found is None else rewrite(bind, found[0], **changed(node, axes=found[1]))


# Of broadcasts


def reduced_then_broadcast(
    x: jax.Array,
    *,
    reduce: tuple[tuple[str, Any], ...] | None,
    count: int,
    shape: tuple[int, ...],
    dims: tuple[int, ...],
) -> jax.Array:
    """`x` reduced, times `count`, broadcast; each only where it does something."""
    if reduce is not None:
        x = bind(x, **dict(reduce))
    if count != 1:
        x = lax.mul(x, np.asarray(count).astype(x.dtype))
    return x if x.shape == shape else lax.broadcast_in_dim(x, shape, dims)


def _of_broadcast(node: Node, times: Callable[[int], int]) -> Outcome:
    """Reduce the operand of a broadcast instead of what the broadcast has made of it."""
    inner = broadcast_of(node.operands[0], node)
    if inner is None or not is_free(node):
        return None
    x, wide = inner.operands[0], inner.result.shape
    axes, dims = node.params["axes"], inner.params["broadcast_dimensions"]
    carries = {out: d for d, out in enumerate(dims) if x.shape[d] == wide[out]}
    repeated = [axis for axis in axes if axis not in carries]
    unit = [d for d, out in enumerate(dims) if out in repeated]
    if not repeated or 0 in wide:
        return None
    own = tuple(sorted([*(carries[axis] for axis in axes if axis in carries), *unit]))
    kept = [axis for axis in range(len(wide)) if axis not in axes]
    places = tuple(kept.index(out) for d, out in enumerate(dims) if d not in own)
    count = times(size(tuple(wide[axis] for axis in repeated)))
    left = tuple(length for d, length in enumerate(x.shape) if d not in own)
    steps = bool(own) + (count != 1) + (left != node.results[0].shape)
    if steps > 1 + used_once(inner.result):
        return None
    reduce = tuple(sorted(changed(node, axes=own).items())) if own else None
    return rewrite(
        reduced_then_broadcast, x, reduce=reduce, count=count, shape=node.results[0].shape, dims=places
    )


@movement_rule(*_SELECTING)
def selection_of_broadcast(node: Node, ctx: PassContext) -> Outcome:
    """reduce_max(broadcast_in_dim(x), axes) → x reduced and broadcast only along the axes that are its own"""
    return _of_broadcast(node, lambda count: 1)


@movement_rule("reduce_sum")
def integer_sum_of_broadcast(node: Node, ctx: PassContext) -> Outcome:
    """reduce_sum(broadcast_in_dim(n), axes) → n times the number of copies; integers wrap around alike"""
    return None if _rounds(node.results[0]) else _of_broadcast(node, lambda count: count)


@movement_rule("reduce_sum", level="reassociate")
def sum_of_broadcast(node: Node, ctx: PassContext) -> Outcome:
    """reduce_sum(broadcast_in_dim(x), axes) → x times the number of copies, rounded once"""
    dtype, wide = node.results[0].dtype, node.operands[0].shape
    outcome = _of_broadcast(node, lambda count: count)
    if outcome is None or not jnp.issubdtype(dtype, np.floating):
        return None
    copies = size(tuple(wide[axis] for axis in node.params["axes"]))
    return outcome if copies <= float(jnp.finfo(dtype).max) else None


# Over dimensions of size one


def _without_units(node: Node) -> Outcome:
    x, axes = node.operands[0], node.params["axes"]
    if not is_free(node) or any(x.shape[axis] != 1 for axis in axes):
        return None
    return rewrite(lax.squeeze, x, dimensions=axes) if axes else x


@movement_rule(*_REORDERABLE)
def reduction_over_units(node: Node, ctx: PassContext) -> Outcome:
    """reduce_max(x, axes of size one) → squeeze(x, axes)"""
    return None if node.op == "reduce_sum" and _rounds(node.results[0]) else _without_units(node)


@movement_rule("reduce_sum", level="reassociate")
def sum_over_units(node: Node, ctx: PassContext) -> Outcome:
    """reduce_sum(x, axes of size one) → squeeze(x, axes), which keeps -0.0"""
    return _without_units(node)


RULES: Final[tuple[Rule, ...]] = (
    reduction_over_units,
    sum_over_units,
    reduction_of_transpose,
    float_reduction_of_transpose,
    selection_of_broadcast,
    integer_sum_of_broadcast,
    sum_of_broadcast,
)
