"""Sums of products: the factors are summed before they are multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._gradients.weighted import bare, factors_of, scaled, varies
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


@movement_rule("reduce_sum", level="reassociate", must_pay=True)
def sum_of_scaled_dot(node: Node, ctx: PassContext) -> Outcome:
    """sum(w[:, None] * (A @ B) * 3, rows) → sum(w[:, None] * A, rows) @ B * 3

    Weights of the rows or columns that are summed go to their factor, those of others and numbers to the
    result (`python benchmarks/rewrites.py --only demand`).
    """
    axes = _plain(node.params["axes"])
    parts = _scaled_dot(node, axes) if is_free(node) else None
    if parts is None:
        return None
    dot, sides, weights, apart, negative = parts
    if not (weights or apart or negative):
        return None
    divisors = tuple(sum(under for _, under in found) for found in (weights, apart))
    return rewrite(
        summed_scaled_dot,
        *dot.operands,
        *(value for value, _ in weights),
        *(value for value, _ in apart),
        sides=sides,
        shape=tuple(dot.result.shape),
        divisors=divisors,
        axes=axes,
        negative=negative,
        params=_params(dot),
        primitive=dot.primitive,
    )


_Scales = list[tuple[Value, bool]]


def _scaled_dot(node: Node, axes: Axes) -> tuple[Node, tuple[int, ...], _Scales, _Scales, bool] | None:
    """The product that a node sums up, times and over what, divisors last.

    Returns:
        The product; the factor that each weight of what is summed goes to; these weights, and whether they
        divide; the same of what does not vary along the axes; whether all of it is negative.
    """
    source = node.operands[0]
    minus = made_by(source, node, "neg")
    parts = factors_of(source if minus is None else minus.operands[0])
    if parts is None or (minus is not None and len(source.uses) != 1):
        return None
    dots = [made_by(v, node, "dot_general") for v, under in parts if not under and v.shape == source.shape]
    dot = next((d for d in dots if d is not None and _sums(d)), None)
    if dot is None or not jnp.issubdtype(source.dtype, np.floating):
        return None
    ranks = (dot.operands[0].ndim, dot.operands[1].ndim)
    places = [places_of(dot.params["dimension_numbers"], ranks, side) for side in (0, 1)]
    weights: _Scales = []
    apart: _Scales = []
    sides: list[int] = []
    for value, under in sorted(parts, key=lambda part: part[1]):
        if value is dot.result:
            continue
        varying = varies(value, source.ndim)
        if value.dtype != source.dtype:
            return None
        if not varying & {*axes}:
            apart.append((bare(value, source.ndim), under))
            continue
        side = next((side for side in (0, 1) if varying <= {*places[side]}), None)
        if side is None:
            return None
        sides.append(side)
        weights.append((bare(value, source.ndim), under))
    return dot, tuple(sides), weights, apart, minus is not None


def places_of(numbers: Any, ranks: Sequence[int], side: int) -> list[int]:
    """For each dimension of a factor, the dimension of the product that it is; -1 for those summed over."""
    summed, batch = numbers
    free = [[d for d in range(ranks[s]) if d not in summed[s] and d not in batch[s]] for s in (0, 1)]
    first = len(batch[0]) + (len(free[0]) if side else 0)
    found = [-1] * ranks[side]
    for place, d in enumerate(batch[side]):
        found[d] = place
    for place, d in enumerate(free[side]):
        found[d] = first + place
    return found


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


def summed_scaled_dot(
    a: jax.Array,
    b: jax.Array,
    *scales: jax.Array,
    sides: tuple[int, ...],
    shape: tuple[int, ...],
    divisors: tuple[int, int],
    axes: Axes,
    negative: bool,
    params: tuple[tuple[str, Any], ...],
    primitive: Any,
) -> jax.Array:
    """The sums of a product times weights of what is summed, times what is apart from it."""
    count = len(sides)
    factors = [a, b]
    for i, (side, weight) in enumerate(zip(sides, scales[:count], strict=True)):
        places = places_of(dict(params)["dimension_numbers"], (a.ndim, b.ndim), side)
        spread = _as_factor(weight, places, factors[side].shape)
        under = i >= count - divisors[0]
        factors[side] = lax.div(factors[side], spread) if under else lax.mul(factors[side], spread)
    total = summed_dot(factors[0], factors[1], axes=axes, params=params, primitive=primitive)
    kept = tuple(d for d in range(len(shape)) if d not in axes)
    total = scaled(total, scales[count:], divisors[1], kept, shape)
    signed: jax.Array = -total if negative else total
    return signed


def _as_factor(weight: jax.Array, places: Sequence[int], shape: tuple[int, ...]) -> jax.Array:
    """A weight of a product, with ones where it does not vary, as one of the factor of this shape."""
    order = [d for d in places if d >= 0]
    kept = sorted(order)
    bare = lax.squeeze(weight, [d for d in range(weight.ndim) if d not in order])
    bare = lax.transpose(bare, [kept.index(d) for d in order])
    return lax.broadcast_in_dim(bare, shape, [at for at, d in enumerate(places) if d >= 0])


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
    shifts = sum_of_broadcast(shift, axes, shape)
    if op == "add":
        return lax.add(total, shifts)
    return lax.sub(shifts, total) if side else lax.sub(total, shifts)


def sum_of_broadcast(x: jax.Array, axes: Axes, shape: tuple[int, ...]) -> jax.Array:
    """The sum over `axes` of `x` broadcast to `shape`."""
    if x.ndim != len(shape):
        x = lax.broadcast_in_dim(x, (1,) * len(shape), ())
    own = [axis for axis in axes if x.shape[axis] == shape[axis]]
    copies = int(np.prod([shape[axis] for axis in axes if axis not in own], dtype=np.int64))
    total = lax.reduce_sum(x, own) if own else x
    total = lax.squeeze(total, [axis - sum(o < axis for o in own) for axis in axes if axis not in own])
    wide = tuple(length for d, length in enumerate(shape) if d not in axes)
    return jnp.broadcast_to(total * np.asarray(copies, total.dtype), wide)


RULES: Final[tuple[Rule, ...]] = (sum_of_dot, sum_of_scaled_dot, sum_of_shifted_dot)
