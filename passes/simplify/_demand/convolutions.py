"""Parts of convolutions, of their examples, features and places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._demand.readers import Cuts, Reading, part_of
from lepton_jax.passes.simplify._movement.common import bind
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import Rewrite

Params = tuple[tuple[str, Any], ...]


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


def spatial_places(conv: Node) -> list[_Place]:
    """The spatial dimensions of a convolution, in order."""
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
    places = dict(zip(out[2:], spatial_places(conv), strict=True))
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
