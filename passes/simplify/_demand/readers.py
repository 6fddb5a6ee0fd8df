"""Readers: operations that take a part of an array, one dimension at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import size
from lepton_jax.passes.simplify._movement.slices import strides_of

OPS: Final = frozenset({"slice", "dynamic_slice", "gather"})

_MOST_PART: Final = 0.75
"""A part larger than this is not worth a change."""

Cuts = tuple[tuple[int, Any], ...]
"""What is taken along each dimension that is not read whole, in order of dimensions."""


@dataclass(frozen=True)
class Reading:
    """How a node reads a part of its operand; the result has the operand's rank.

    Attributes:
        kind: `slice`: a cut is (start, limit, stride); `dynamic`: a cut is (number of the start among
            `starts`, length); `rows`: the only cut is (places, mode, sorted, unique), the rows' numbers are
            `starts`, and `places` says which dimension each of that index's dimensions goes with.
        cuts: what is taken along each dimension that is not read whole.
        starts: where the part begins, as values.
    """

    kind: Literal["slice", "dynamic", "rows"]
    cuts: Cuts
    starts: tuple[Value, ...] = ()

    @property
    def dimensions(self) -> tuple[int, ...]:
        """The dimensions that are not read whole, and those along which other rows are read."""
        own = [d for d, _ in self.cuts]
        if self.kind == "rows":
            own += [d for _, (places, *_) in self.cuts for d in places if d not in own]
        return tuple(own)

    def length(self, d: int) -> int:
        """How many entries are read along a dimension that is not read whole."""
        cut = dict(self.cuts)[d]
        if self.kind == "slice":
            return len(range(*cut))
        return int(cut[1]) if self.kind == "dynamic" else int(self.starts[0].shape[cut[0].index(d)])

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The shape of what is read of an array of a shape."""
        own = dict(self.cuts)
        return tuple(self.length(d) if d in own else length for d, length in enumerate(whole))

    def at(self, places: dict[int, int]) -> Cuts | None:
        """The cuts for an array whose dimension `d` is dimension `places[d]` of the operand.

        None where each row of another dimension needs other rows, and the array has no such dimension.
        """
        own = dict(self.cuts)
        found = {d: own[source] for d, source in sorted(places.items()) if source in own}
        if self.kind != "rows" or not found:
            return tuple(found.items())
        back = {source: d for d, source in places.items()}
        ((axis, (along, *how)),) = found.items()
        if any(d not in back for d in along):
            return None
        return ((axis, (tuple(back[d] for d in along), *how)),)


def reading_of(node: Node) -> Reading | None:
    """How a node reads a part of its first operand, if it reads a part and not nearly all of it."""
    if size(node.results[0].shape) > _MOST_PART * size(node.operands[0].shape):
        return None
    if node.op == "slice":
        return _of_slice(node)
    if node.op == "dynamic_slice":
        return _of_dynamic_slice(node)
    return _of_rows(node) if node.op == "gather" else None


def _of_slice(node: Node) -> Reading:
    p, shape = node.params, node.operands[0].shape
    bounds = zip(p["start_indices"], p["limit_indices"], strides_of(node), strict=True)
    cuts = ((d, tuple(map(int, cut))) for d, cut in enumerate(bounds) if cut != (0, shape[d], 1))
    return Reading("slice", tuple(cuts))


def _of_dynamic_slice(node: Node) -> Reading | None:
    x, *starts = node.operands
    if len(starts) != x.ndim:  # dynamic sizes
        return None
    part = [d for d in range(x.ndim) if node.result.shape[d] != x.shape[d]]
    cuts = tuple((d, (i, node.result.shape[d])) for i, d in enumerate(part))
    return Reading("dynamic", cuts, tuple(starts[d] for d in part))


def _of_rows(node: Node) -> Reading | None:
    """A gather of whole rows along one dimension, as `rows_of` writes it."""
    p = node.params
    numbers = p["dimension_numbers"]
    x, rows = node.operands
    batch = {
        int(at): int(d)
        for at, d in zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True)
    }
    if len(numbers.start_index_map) != 1 or rows.ndim != len(batch) + 2:
        return None
    axis = int(numbers.start_index_map[0])
    others = tuple(d for d in range(x.ndim) if d != axis and d not in batch.values())
    if tuple(numbers.collapsed_slice_dims) != (axis,) or tuple(numbers.offset_dims) != others:
        return None
    if any(p["slice_sizes"][d] != x.shape[d] for d in others) or "FILL" in str(p["mode"]):
        return None
    places = tuple(batch.get(at, axis) for at in range(rows.ndim - 1))
    if list(places) != sorted(places):
        return None
    cut = (places, p["mode"], p["indices_are_sorted"], p["unique_indices"])
    return Reading("rows", ((axis, cut),), (rows,))


def part_of(x: jax.Array, kind: str, cuts: Cuts, starts: Sequence[jax.Array]) -> jax.Array:
    """The part of `x` that a reading with these cuts takes."""
    if not cuts:
        return x
    if kind == "slice":
        bounds = [dict(cuts).get(d, (0, length, 1)) for d, length in enumerate(x.shape)]
        start, limit, strides = zip(*bounds, strict=True)
        return lax.slice(x, start, limit, None if all(s == 1 for s in strides) else strides)
    if kind == "dynamic":
        return _dynamic_part(x, dict(cuts), starts)
    ((axis, (places, mode, is_sorted, unique)),) = cuts
    return rows_of(x, starts[0], axis, places, mode, is_sorted=is_sorted, unique=unique)


def _dynamic_part(x: jax.Array, cuts: dict[int, tuple[int, int]], starts: Sequence[jax.Array]) -> jax.Array:
    zero = np.zeros((), starts[0].dtype)
    places = [starts[cuts[d][0]] if d in cuts else zero for d in range(x.ndim)]
    sizes = tuple(cuts[d][1] if d in cuts else length for d, length in enumerate(x.shape))
    part: jax.Array = lax.dynamic_slice_p.bind(x, *places, slice_sizes=sizes)
    return part


def rows_of(
    x: jax.Array,
    rows: jax.Array,
    axis: int,
    places: tuple[int, ...],
    mode: Any,
    *,
    is_sorted: bool = False,
    unique: bool = False,
) -> jax.Array:
    """The entries of `x` along `axis` whose numbers are `rows`.

    Args:
        rows: of shape (n, 1), or (..., n, 1) with numbers for each row of other dimensions.
        places: for each dimension of `rows` but the last, which dimension of `x` it goes with; n with `axis`.

    Returns:
        An array like `x`, with n entries along `axis`.
    """
    order = sorted(range(len(places)), key=lambda at: places[at])
    if order != list(range(len(places))):
        rows = lax.transpose(rows, (*order, len(places)))
    along = sorted(places)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(d for d in range(x.ndim) if d not in along),
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
        operand_batching_dims=tuple(d for d in along if d != axis),
        start_indices_batching_dims=tuple(at for at, d in enumerate(along) if d != axis),
    )
    sizes = tuple(1 if d in along else length for d, length in enumerate(x.shape))
    return lax.gather(x, rows, numbers, sizes, mode=mode, indices_are_sorted=is_sorted, unique_indices=unique)
