"""Parts of convolutions, of their examples, features and places."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._demand.readers import Cuts, Reading, part_of
from lepton_jax.passes.simplify._movement.common import bind, is_free, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.replacement import Rewrite
from lepton_jax.rewrite.rule import Outcome

Pads = tuple[tuple[int, int], ...]
Params = tuple[tuple[str, Any], ...]

_MOST_TAPS: Final = 32
"""Taps up to which the sum over all places is written out tap by tap."""


@dataclass(frozen=True)
class _Place:
    """One spatial dimension of a convolution: of the input, its length, and how the window walks it."""

    dim: int
    length: int
    taps: int
    stride: int
    low: int
    high: int
    hole: int
    spread: int

    @property
    def extent(self) -> int:
        """How many places the window covers."""
        return (self.taps - 1) * self.spread + 1


def _places(conv: Node) -> list[_Place]:
    p, (x, kernel) = conv.params, conv.operands
    left, right, _ = p["dimension_numbers"]
    return [
        _Place(int(d), int(x.shape[d]), int(kernel.shape[k]), int(stride), int(low), int(high), hole, spread)
        for d, k, stride, (low, high), hole, spread in zip(
            left[2:],
            right[2:],
            p["window_strides"],
            p["padding"],
            p["lhs_dilation"],
            p["rhs_dilation"],
            strict=True,
        )
    ]


def is_convolution_cut(conv: Node, reading: Reading) -> bool:
    """Whether a reading takes a part of the places of a convolution."""
    return bool(set(reading.dimensions) & set(conv.params["dimension_numbers"][2][2:]))


def part_of_convolution(conv: Node, reading: Reading) -> Rewrite | None:
    """The convolution of the part of the input that a part of its result, cut in space, depends on."""
    left, right, out = conv.params["dimension_numbers"]
    if reading.kind == "rows" or conv.params["batch_group_count"] != 1:
        return None
    places = dict(zip(out[2:], _places(conv), strict=True))
    own = dict(reading.cuts)
    inputs = {left[0]: own[out[0]]} if out[0] in own else {}
    features = {right[0]: own[out[1]]} if out[1] in own else {}
    if features and conv.params["feature_group_count"] != 1:
        return None
    strides, padding = (
        list(map(int, conv.params["window_strides"])),
        [tuple(p) for p in conv.params["padding"]],
    )
    fill = [(0, 0, 0)] * conv.operands[0].ndim
    moves: list[tuple[int, int, int]] = []
    for i, d in enumerate(out[2:]):
        if d not in own:
            continue
        place = places[d]
        if place.hole != 1:
            return None
        if reading.kind == "slice":
            cut = _input_of(place, own[d])
            if cut is None:
                return None
            start, limit, stride, pads = cut
            inputs[place.dim], strides[i], padding[i] = (start, limit, 1), stride, pads
            continue
        number, length = own[d]
        if place.low < 0 or place.high < 0:
            return None
        fill[place.dim], padding[i] = (place.low, place.high, 0), (0, 0)
        inputs[place.dim] = (number, (length - 1) * place.stride + place.extent)
        moves.append((number, int(conv.result.shape[d]) - length, place.stride))
    return rewrite(
        convolved_part,
        *conv.operands,
        *reading.starts,
        kind=reading.kind,
        cuts=(tuple(sorted(inputs.items())), tuple(sorted(features.items()))),
        fill=tuple(fill),
        moves=tuple(moves),
        primitive=conv.primitive,
        params=tuple(
            sorted({**conv.params, "window_strides": tuple(strides), "padding": tuple(padding)}.items())
        ),
    )


def _input_of(place: _Place, cut: tuple[int, int, int]) -> tuple[int, int, int, tuple[int, int]] | None:
    """What of the input the places start, start + step, … depend on: its bounds, the stride, the padding."""
    start, limit, step = cut
    last = start + (limit - 1 - start) // step * step
    first, end = start * place.stride - place.low, last * place.stride - place.low + place.extent
    low, high = max(first, 0), min(end, place.length)
    if low >= high:
        return None
    return low, high, place.stride * step, (low - first, end - high)


def convolved_part(
    x: jax.Array,
    kernel: jax.Array,
    *starts: jax.Array,
    kind: str,
    cuts: tuple[Cuts, Cuts],
    fill: tuple[tuple[int, int, int], ...],
    moves: tuple[tuple[int, int, int], ...],
    primitive: Any,
    params: Params,
) -> Any:
    """A convolution of parts of its input and kernel.

    Args:
        fill: how the input is padded before it is cut.
        moves: which starts count places of the result, where the last may begin, and the stride.
    """
    begins = list(starts)
    for number, most, stride in moves:
        kept = lax.clamp(
            np.zeros((), starts[number].dtype), starts[number], np.asarray(most, starts[number].dtype)
        )
        begins[number] = lax.mul(kept, np.asarray(stride, kept.dtype)) if stride != 1 else kept
    if any(map(any, fill)):
        x = lax.pad(x, np.zeros((), x.dtype), fill)
    return bind(
        part_of(x, kind, cuts[0], begins),
        part_of(kernel, kind, cuts[1], begins),
        primitive=primitive,
        params=params,
    )


# Sums


@movement_rule("reduce_sum", level="reassociate", must_pay=True)
def sum_of_convolution(node: Node, ctx: PassContext) -> Outcome:
    """Sums of a convolution, without the convolution

    sum(conv(x, k), features) → conv(x, sum(k, features)), sum(conv(x, k), examples) → conv(sum(x), k), and
    summed over all places (as in a mean over the image): a product of the kernel with the sums of the parts
    of x that each tap meets. For one group and up to 32 taps, numbers of 32 bits and more
    (`python benchmarks/rewrites.py --only demand`).
    """
    conv = node.operands[0].node
    if conv is None or conv.op != "conv_general_dilated" or conv.context is not node.context:
        return None
    if not is_free(node) or not is_free(conv) or len(conv.result.uses) != 1 or not _sums(conv):
        return None
    _, right, out = conv.params["dimension_numbers"]
    axes = {int(axis) for axis in node.params["axes"]}
    spatial = set(out[2:])
    if axes & spatial and (
        not spatial <= axes or any(p.hole != 1 or min(p.low, p.high) < 0 for p in _places(conv))
    ):
        return None
    taps = int(np.prod([conv.operands[1].shape[d] for d in right[2:]]))
    if axes & spatial and taps > _MOST_TAPS:
        return None
    return rewrite(
        summed_convolution,
        *conv.operands,
        axes=tuple(sorted(axes)),
        sizes=tuple(conv.result.shape[d] for d in out[2:]),
        primitive=conv.primitive,
        params=tuple(sorted(conv.params.items())),
    )


def _sums(conv: Node) -> bool:
    p, types = conv.params, {v.dtype for v in (*conv.operands, conv.result)}
    one = p["feature_group_count"] == p["batch_group_count"] == 1
    (kind, *others) = types
    return one and not others and bool(np.issubdtype(kind, np.floating)) and kind.itemsize >= 4


def summed_convolution(
    x: jax.Array,
    kernel: jax.Array,
    *,
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
    primitive: Any,
    params: Params,
) -> jax.Array:
    """The convolution summed over some dimensions of its result, summed before it is made."""
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
    met = _met_by_taps(x, kernel, sizes, settings)
    numbers = ((left[1], *left[2:]), (right[1], *right[2:]))
    total: jax.Array = lax.dot_general(
        met,
        kernel,
        (numbers, ((), ())),
        precision=settings["precision"],
        preferred_element_type=settings["preferred_element_type"],
    )
    total = lax.squeeze(total, [i for i in (0, 1) if out[i] in axes])
    kept = [d for d in (out[0], out[1]) if d not in axes]
    return lax.transpose(total, (1, 0)) if kept != sorted(kept) else total


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
