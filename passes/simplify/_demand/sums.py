"""Sums of products: the factors are summed before they are multiplied."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import bind, is_free, made_by, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.replacement import Rewrite
from lepton_jax.rewrite.rule import Outcome

Axes = tuple[int, ...]


@movement_rule("reduce_sum", level="reassociate", must_pay=True)
def sum_of_dot(node: Node, ctx: PassContext) -> Outcome:
    """Sums of a product, without the product

    sum(A @ B, rows) → sum(A, rows) @ B, sum(A @ B) → sum(A, rows) @ sum(B, columns), and the batch
    dimensions summed over are contracted. For numbers of 32 bits and more: sums of shorter ones
    would round more than the product does. 70× at 1024×1024 (`python benchmarks/rewrites.py --only demand`).
    """
    dot = made_by(node.operands[0], node, "dot_general")
    if dot is None or not is_free(node) or not _sums(dot):
        return None
    return _summed(dot, node.params["axes"])


@movement_rule("reduce_sum", level="reassociate", must_pay=True)
def sum_of_shifted_dot(node: Node, ctx: PassContext) -> Outcome:
    """sum(A @ B + c) → sum(A) @ B + sum(c), and differences, where the sum of the product is cheap"""
    inner = made_by(node.operands[0], node, "add", "sub")
    if inner is None or not is_free(node) or len(inner.result.uses) != 1:
        return None
    for side in (0, 1):
        dot = made_by(inner.operands[side], node, "dot_general")
        if dot is not None and _sums(dot) and dot.result.shape == inner.result.shape:
            return _summed_shifted(inner, side, dot, node.params["axes"])
    return None


def _sums(dot: Node) -> bool:
    """Whether sums of a product's factors round no more than the product."""
    types = [v.dtype for v in (*dot.operands, dot.result)]
    same = len(set(types)) == 1
    kind = types[0]
    wide = jnp.issubdtype(kind, np.integer) or (jnp.issubdtype(kind, np.inexact) and kind.itemsize >= 4)
    return same and bool(wide) and is_free(dot) and len(dot.result.uses) == 1


def _summed(dot: Node, axes: Axes) -> Rewrite | None:
    return rewrite(summed_dot, *dot.operands, axes=_plain(axes), params=_params(dot), primitive=dot.primitive)


def _plain(axes: Axes) -> Axes:
    return tuple(int(axis) for axis in axes)


def _params(dot: Node) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(dot.params.items()))


def _summed_shifted(inner: Node, side: int, dot: Node, axes: Axes) -> Rewrite | None:
    shift: Value = inner.operands[1 - side]
    if shift.dtype != dot.result.dtype:
        return None
    return rewrite(
        summed_shifted_dot,
        *dot.operands,
        shift,
        axes=_plain(axes),
        shape=dot.result.shape,
        op=inner.op,
        side=side,
        params=_params(dot),
        primitive=dot.primitive,
    )


def summed_dot(
    a: jax.Array, b: jax.Array, *, axes: Axes, params: tuple[tuple[str, Any], ...], primitive: Any
) -> Any:
    """The product summed over some of its dimensions: free ones of the factors first, batches contracted."""
    settings = dict(params)
    contract, batch = settings["dimension_numbers"]
    factors, numbers = [], []
    at = len(batch[0])
    for side, x in enumerate((a, b)):
        free = [d for d in range(x.ndim) if d not in contract[side] and d not in batch[side]]
        gone = [d for i, d in enumerate(free) if at + i in axes]
        at += len(free)
        kept = [d for d in range(x.ndim) if d not in gone]
        joined = [d for i, d in enumerate(batch[side]) if i in axes]
        apart = [d for i, d in enumerate(batch[side]) if i not in axes]
        factors.append(lax.reduce_sum(x, gone) if gone else x)
        numbers.append([tuple(kept.index(d) for d in own) for own in ([*contract[side], *joined], apart)])
    (left, left_batch), (right, right_batch) = numbers
    settings["dimension_numbers"] = ((left, right), (left_batch, right_batch))
    return bind(*factors, primitive=primitive, params=tuple(settings.items()))


def summed_shifted_dot(
    a: jax.Array,
    b: jax.Array,
    shift: jax.Array,
    *,
    axes: Axes,
    shape: tuple[int, ...],
    op: str,
    side: int,
    params: tuple[tuple[str, Any], ...],
    primitive: Any,
) -> jax.Array:
    """The sums of a product and of what is added to it or taken from it."""
    total = summed_dot(a, b, axes=axes, params=params, primitive=primitive)
    shifts = _sum_of_broadcast(shift, axes, shape)
    if op == "add":
        return lax.add(total, shifts)
    return lax.sub(shifts, total) if side else lax.sub(total, shifts)


def _sum_of_broadcast(x: jax.Array, axes: Axes, shape: tuple[int, ...]) -> jax.Array:
    """The sum over `axes` of `x` broadcast to `shape`."""
    if x.ndim != len(shape):
        x = lax.broadcast_in_dim(x, (1,) * len(shape), ())
    own = [axis for axis in axes if x.shape[axis] == shape[axis]]
    copies = int(np.prod([shape[axis] for axis in axes if axis not in own], dtype=np.int64))
    total = lax.reduce_sum(x, own) if own else x
    total = lax.squeeze(total, [axis - sum(o < axis for o in own) for axis in axes if axis not in own])
    wide = tuple(length for d, length in enumerate(shape) if d not in axes)
    return jnp.broadcast_to(total * np.asarray(copies, total.dtype), wide)


RULES: Final[tuple[Rule, ...]] = (sum_of_dot, sum_of_shifted_dot)
