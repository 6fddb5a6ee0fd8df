"""Sums of convolutions: what is summed over is summed before it is convolved."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._demand.convolutions import Params, spatial_places
from lepton_jax.passes.simplify._demand.sums import sum_of_broadcast
from lepton_jax.passes.simplify._movement.common import bind, is_free, made_by, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_MOST_TAPS: Final = 32
"""Taps up to which the sum over all places is written out tap by tap."""


@movement_rule("reduce_sum", level="reassociate", must_pay=True)
def sum_of_convolution(node: Node, ctx: PassContext) -> Outcome:
    """Sums of a convolution, without the convolution

    sum(conv(x, k), features) → conv(x, sum(k, features)), sum(conv(x, k), examples) → conv(sum(x), k), and
    summed over all places (as in a mean over the image): a product of the kernel with the sums of the parts
    of x that each tap meets. For one group and up to 32 taps, numbers of 32 bits and more; also where a
    bias is added first (`python benchmarks/rewrites.py --only demand`).
    """
    conv, shift = _shifted(node)
    if conv is None or not is_free(node) or not is_free(conv):
        return None
    if len(conv.result.uses) != 1 or not _sums(conv):
        return None
    _, right, out = conv.params["dimension_numbers"]
    axes = {int(axis) for axis in node.params["axes"]}
    spatial = set(out[2:])
    if axes & spatial and (
        not spatial <= axes or any(p.hole != 1 or min(p.low, p.high) < 0 for p in spatial_places(conv))
    ):
        return None
    taps = int(np.prod([conv.operands[1].shape[d] for d in right[2:]]))
    if axes & spatial and taps > _MOST_TAPS:
        return None
    return rewrite(
        summed_convolution,
        *conv.operands,
        *(() if shift is None else (shift,)),
        axes=tuple(sorted(axes)),
        shape=tuple(conv.result.shape),
        primitive=conv.primitive,
        params=tuple(sorted(conv.params.items())),
    )


def _shifted(node: Node) -> tuple[Node | None, Value | None]:
    """The convolution that a node reads, by itself or in a sum, and what is added to it."""
    whole = node.operands[0]
    conv = made_by(whole, node, "conv_general_dilated")
    inner = made_by(whole, node, "add")
    if conv is not None or inner is None or len(whole.uses) != 1:
        return conv, None
    for side in (0, 1):
        conv, shift = made_by(inner.operands[side], node, "conv_general_dilated"), inner.operands[1 - side]
        if conv is not None and conv.result.shape == whole.shape and shift.dtype == whole.dtype:
            return conv, shift
    return None, None


def _sums(conv: Node) -> bool:
    p, types = conv.params, {v.dtype for v in (*conv.operands, conv.result)}
    one = p["feature_group_count"] == p["batch_group_count"] == 1
    (kind, *others) = types
    return one and not others and bool(np.issubdtype(kind, np.floating)) and kind.itemsize >= 4


def summed_convolution(
    x: jax.Array,
    kernel: jax.Array,
    *shift: jax.Array,
    axes: tuple[int, ...],
    shape: tuple[int, ...],
    primitive: Any,
    params: Params,
) -> jax.Array:
    """The convolution summed over some dimensions of its result, summed before it is made.

    Args:
        shift: what is added to the convolution, if anything is.
        shape: of the convolution.
    """
    if shift:
        total = summed_convolution(x, kernel, axes=axes, shape=shape, primitive=primitive, params=params)
        return lax.add(total, sum_of_broadcast(shift[0], axes, shape))
    settings = dict(params)
    left, right, out = settings["dimension_numbers"]
    if out[0] in axes:
        x = lax.reduce_sum(x, (left[0],))
        x = lax.expand_dims(x, (left[0],))
    if out[1] in axes:
        kernel = lax.reduce_sum(kernel, (right[0],))
        kernel = lax.expand_dims(kernel, (right[0],))
    if not set(out[2:]) <= set(axes):
        whole = bind(x, kernel, primitive=primitive, params=params)
        return lax.squeeze(whole, axes)
    met = _met_by_taps(x, kernel, tuple(shape[d] for d in out[2:]), settings)
    numbers = ((left[1], *left[2:]), (right[1], *right[2:]))
    total = lax.dot_general(
        met,
        kernel,
        (numbers, ((), ())),
        precision=settings["precision"],
        preferred_element_type=settings["preferred_element_type"],
    )
    total = lax.squeeze(total, [i for i in (0, 1) if out[i] in axes])
    kept = [d for d in (out[0], out[1]) if d not in axes]
    result: jax.Array = lax.transpose(total, (1, 0)) if kept != sorted(kept) else total
    return result


def _met_by_taps(
    x: jax.Array, kernel: jax.Array, sizes: tuple[int, ...], settings: dict[str, Any]
) -> jax.Array:
    """For each tap the sum of the input that it meets, in place of the spatial dimensions of the input."""
    left, right, _ = settings["dimension_numbers"]
    for i, size in enumerate(sizes):
        (low, _), axis = settings["padding"][i], left[2 + i]
        stride, spread = settings["window_strides"][i], settings["rhs_dilation"][i]
        starts = [tap * spread - low for tap in range(kernel.shape[right[2 + i]])]
        runs = [_inside(start, size, stride, x.shape[axis]) for start in starts]
        x = lax.concatenate([lax.expand_dims(s, (axis,)) for s in _sums_of_runs(x, axis, runs, stride)], axis)
    return x


def _inside(start: int, count: int, stride: int, length: int) -> tuple[int, int]:
    """The first of `count` places from `start`, `stride` apart, that is in the array, and behind the last."""
    first = min(start - min(start, 0) // stride * stride, length)
    last = min(start + (count - 1) * stride, length - 1)
    return first, max(last + 1, first)


def _sums_of_runs(x: jax.Array, axis: int, runs: Sequence[tuple[int, int]], stride: int) -> list[jax.Array]:
    """Sums of `x` over parts of an axis; what all have in common is added up once."""
    first, end = max(a for a, _ in runs), min(b for _, b in runs)
    if stride != 1 or end <= first:
        return [_sum_of_run(x, axis, run, stride) for run in runs]
    common = _sum_of_run(x, axis, (first, end), 1)
    found = []
    for a, b in runs:
        edges = [_sum_of_run(x, axis, edge, 1) for edge in ((a, first), (end, b)) if edge[0] < edge[1]]
        found.append(functools.reduce(lax.add, edges, common))
    return found


def _sum_of_run(x: jax.Array, axis: int, run: tuple[int, int], stride: int) -> jax.Array:
    return lax.reduce_sum(lax.slice_in_dim(x, *run, stride, axis), (axis,))


RULES: Final[tuple[Rule, ...]] = (sum_of_convolution,)
