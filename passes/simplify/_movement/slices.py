"""Static slices: of everything, of slices, of broadcasts, of pads and of stacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import jax
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.broadcasts import broadcast_of
from lepton_jax.passes.simplify._movement.common import is_plain, made_by, movement_rule, used_once
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome


class Window(NamedTuple):
    """A block of an array: `source[start:limit]` in every dimension."""

    source: Value
    start: tuple[int, ...]
    limit: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - first for first, stop in zip(self.start, self.limit, strict=True))

    @property
    def is_whole(self) -> bool:
        return self.shape == self.source.shape

    def cut(self, axis: int, start: int, limit: int) -> Window:
        """The part between `start` and `limit` along one axis, counted from the window's own start."""
        first = self.start[axis]
        return Window(
            self.source,
            (*self.start[:axis], first + start, *self.start[axis + 1 :]),
            (*self.limit[:axis], first + limit, *self.limit[axis + 1 :]),
        )


def whole(value: Value) -> Window:
    """All of a value."""
    return Window(value, (0,) * value.ndim, value.shape)


def window_of(value: Value, node: Node) -> Window:
    """The block that `value` is of another array, by a slice without strides or a split; else of itself."""
    maker = made_by(value, node, "slice", "split")
    if maker is None:
        return whole(value)
    source = maker.operands[0]
    if maker.op == "slice":
        if any(stride != 1 for stride in strides_of(maker)):
            return whole(value)
        return Window(source, maker.params["start_indices"], maker.params["limit_indices"])
    sizes = [int(length) for length in maker.params["sizes"]]
    start = sum(sizes[: value.index])
    return whole(source).cut(maker.params["axis"], start, start + sizes[value.index])


def strides_of(node: Node) -> tuple[int, ...]:
    """The strides of a slice, ones written out."""
    strides = node.params["strides"]
    return (1,) * node.result.ndim if strides is None else tuple(strides)


def take(
    x: jax.Array, *, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None
) -> jax.Array:
    """`x[start:limit:strides]` in every dimension; itself if that is all of it."""
    if strides is not None and all(stride == 1 for stride in strides):
        strides = None
    if strides is None and tuple(limit) == x.shape and not any(start):
        return x
    return lax.slice(x, start, limit, strides)


@movement_rule("slice")
def slice_of_everything(node: Node, ctx: PassContext) -> Outcome:
    """x[0:n] → x"""
    x = node.operands[0]
    return x if x.shape == node.result.shape else None


@movement_rule("slice")
def slice_of_slice(node: Node, ctx: PassContext) -> Outcome:
    """x[a:b:s][c:d:t] → x[a + s·c:…:s·t], also of a part of a split"""
    inner = made_by(node.operands[0], node, "slice", "split")
    if inner is None:
        return None
    block = window_of(node.operands[0], node)
    steps = (1,) * node.result.ndim
    if inner.op == "slice":
        steps = strides_of(inner)
        block = Window(inner.operands[0], inner.params["start_indices"], inner.params["limit_indices"])
    start = []
    limit = []
    strides = []
    for d, length in enumerate(node.result.shape):
        stride = strides_of(node)[d] * steps[d]
        first = block.start[d] + node.params["start_indices"][d] * steps[d]
        start.append(min(first, block.source.shape[d]) if length == 0 else first)
        limit.append(first + (length - 1) * stride + 1 if length else start[-1])
        strides.append(stride if length > 1 else 1)
    return rewrite(take, block.source, start=tuple(start), limit=tuple(limit), strides=tuple(strides))


def broadcast_part(
    x: jax.Array, *, part: tuple[tuple[int, ...], ...] | None, shape: tuple[int, ...], dims: tuple[int, ...]
) -> jax.Array:
    """A part (start, limit, strides) of `x`, or all of it, broadcast."""
    if part is not None:
        x = take(x, start=part[0], limit=part[1], strides=part[2])
    return x if x.shape == shape else lax.broadcast_in_dim(x, shape, dims)


@movement_rule("slice")
def slice_of_broadcast(node: Node, ctx: PassContext) -> Outcome:
    """broadcast_in_dim(x)[a:b] → broadcast_in_dim(x[a:b]), less to repeat"""
    inner = broadcast_of(node.operands[0], node)
    if inner is None:
        return None
    x, shape, dims = inner.operands[0], node.result.shape, inner.params["broadcast_dimensions"]
    wide = inner.result.shape
    cut = [d for d in range(x.ndim) if x.shape[d] == wide[dims[d]] != shape[dims[d]]]
    if not cut:
        return rewrite(broadcast_part, x, part=None, shape=shape, dims=dims)
    if not used_once(inner.result):
        return None
    full = (node.params["start_indices"], node.params["limit_indices"], strides_of(node))
    rest = (0, None, 1)
    start, limit, strides = (
        tuple(
            bounds[dims[d]] if d in cut else (x.shape[d] if other is None else other) for d in range(x.ndim)
        )
        for bounds, other in zip(full, rest, strict=True)
    )
    return rewrite(broadcast_part, x, part=(start, limit, strides), shape=shape, dims=dims)


def padded_part(
    x: jax.Array,
    fill: jax.Array,
    *,
    start: tuple[int, ...],
    limit: tuple[int, ...],
    padding: tuple[tuple[int, int, int], ...],
) -> jax.Array:
    """A part of `x`, padded."""
    part = take(x, start=start, limit=limit)
    return lax.pad(part, fill, padding) if any(map(any, padding)) else part


def repeat(fill: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
    """A scalar repeated."""
    return lax.broadcast_in_dim(fill, shape, ())


@movement_rule("slice")
def slice_of_pad(node: Node, ctx: PassContext) -> Outcome:
    """pad(x, v)[a:b] → a part of x, with less padding or none; v repeated where nothing of x is left"""
    inner = made_by(node.operands[0], node, "pad")
    if inner is None or any(stride != 1 for stride in strides_of(node)):
        return None
    x, fill = inner.operands
    part: list[tuple[int, int]] = []
    padding: list[tuple[int, int, int]] = []
    bounds = zip(node.params["start_indices"], node.params["limit_indices"], strict=True)
    for (first, stop), (low, high, within), length in zip(
        bounds, inner.params["padding_config"], x.shape, strict=True
    ):
        if within or low < 0 or high < 0:
            return None
        start, limit = (min(max(edge - low, 0), length) for edge in (first, stop))
        before = max(min(stop, low) - first, 0)
        part.append((start, limit))
        padding.append((before, stop - first - before - (limit - start), 0))
    if any(start == limit for start, limit in part):
        return rewrite(repeat, fill, shape=node.result.shape) if is_plain(node.result) else None
    if any(map(any, padding)) and not used_once(inner.result):
        return None
    start, limit = zip(*part, strict=True)
    return rewrite(padded_part, x, fill, start=start, limit=limit, padding=tuple(padding))


def entry_of_stack(x: jax.Array, *, axis: int, start: tuple[int, ...], limit: tuple[int, ...]) -> jax.Array:
    """A part of `x` with a new dimension of size one."""
    return lax.expand_dims(take(x, start=start, limit=limit), (axis,))


@movement_rule("slice")
def slice_of_stack(node: Node, ctx: PassContext) -> Outcome:
    """stack(x, y, …)[i:i + 1] → expand_dims(the i-th), so that `stack(…)[i]` becomes the i-th"""
    inner = made_by(node.operands[0], node, "stack")
    if inner is None:
        return None
    axis = inner.params["axis"]
    start, limit = list(node.params["start_indices"]), list(node.params["limit_indices"])
    if node.result.shape[axis] != 1 or any(stride != 1 for stride in strides_of(node)):
        return None
    piece = inner.operands[start.pop(axis)]
    limit.pop(axis)
    if not used_once(inner.result) and Window(piece, tuple(start), tuple(limit)).shape != piece.shape:
        return None
    return rewrite(entry_of_stack, piece, axis=axis, start=tuple(start), limit=tuple(limit))


RULES: Final[tuple[Rule, ...]] = (
    slice_of_everything,
    slice_of_slice,
    slice_of_broadcast,
    slice_of_pad,
    slice_of_stack,
)
