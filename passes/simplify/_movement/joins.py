"""Concatenations and what takes them apart: slices, splits, stacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import itself, made_by, movement_rule, used_once
from lepton_jax.passes.simplify._movement.slices import Window, strides_of, take, whole, window_of
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

Cuts = tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None, ...]
"""For each piece the start, limit and strides of the part to take of it, or None for all."""

_MOST_PIECES: Final = 64


def join(*pieces: jax.Array, axis: int, cuts: Cuts) -> jax.Array:
    """Parts of the pieces, one after the other along `axis`."""
    parts = [
        piece if cut is None else take(piece, start=cut[0], limit=cut[1], strides=cut[2])
        for piece, cut in zip(pieces, cuts, strict=True)
    ]
    return parts[0] if len(parts) == 1 else lax.concatenate(parts, axis)


def _joined(windows: Sequence[Window], axis: int) -> Outcome:
    """The windows along `axis`, those that are whole left as they are."""
    ones = (1,) * len(windows[0].start)
    cuts = tuple(None if w.is_whole else (w.start, w.limit, ones) for w in windows)
    return rewrite(join, *(w.source for w in windows), axis=axis, cuts=cuts)


@movement_rule("concatenate")
def concatenate_of_empty(node: Node, ctx: PassContext) -> Outcome:
    """concatenate([x]) → x, and pieces of size zero along the axis are left out"""
    axis = int(node.params["dimension"])
    pieces = [piece for piece in node.operands if piece.shape[axis] != 0] or node.operands[:1]
    if len(pieces) == 1:
        return pieces[0]
    return None if len(pieces) == len(node.operands) else _joined([*map(whole, pieces)], axis)


@movement_rule("concatenate")
def concatenate_of_concatenate(node: Node, ctx: PassContext) -> Outcome:
    """concatenate([concatenate([x, y]), z]) → concatenate([x, y, z]) on one axis

    Only where nothing else reads the inner one, so that nothing is copied twice, and up to 64
    pieces, so that long chains do not take quadratic time.
    """
    axis = int(node.params["dimension"])
    pieces: list[Value] = []
    for piece in node.operands:
        inner = made_by(piece, node, "concatenate") if used_once(piece) else None
        if inner is None or inner.params["dimension"] != axis:
            pieces.append(piece)
        else:
            pieces += inner.operands
    if len(pieces) == len(node.operands) or len(pieces) > _MOST_PIECES:
        return None
    return _joined([*map(whole, pieces)], axis)


@movement_rule("concatenate")
def concatenate_of_adjacent(node: Node, ctx: PassContext) -> Outcome:
    """concatenate([x[a:b], x[b:c]]) → x[a:c], also of slices that a split has made; all of x is x itself"""
    axis = int(node.params["dimension"])
    merged: list[Window] = []
    given: list[Value | None] = []
    for piece in node.operands:
        window = window_of(piece, node)
        if merged and _continues(merged[-1], window, axis):
            last = merged.pop()
            merged.append(Window(last.source, last.start, window.limit))
            given[-1] = None
        else:
            merged.append(window)
            given.append(piece)
    if len(merged) == len(node.operands):
        return None
    pairs = zip(given, merged, strict=True)
    return _joined([window if piece is None else whole(piece) for piece, window in pairs], axis)


def _continues(first: Window, second: Window, axis: int) -> bool:
    """Whether `second` is the part of the same array right after `first` along `axis`."""
    if first.source is not second.source or first.limit[axis] != second.start[axis]:
        return False
    sides = [d for d in range(len(first.start)) if d != axis]
    return all(first.start[d] == second.start[d] and first.limit[d] == second.limit[d] for d in sides)


@movement_rule("slice")
def slice_of_concatenate(node: Node, ctx: PassContext) -> Outcome:
    """concatenate([x, y, z])[a:b] → a part of the piece that it lies in, or of fewer pieces

    Several pieces are joined anew only where nothing else reads the concatenation and at most one
    of them has to be cut.
    """
    inner = made_by(node.operands[0], node, "concatenate")
    if inner is None or node.result.shape[inner.params["dimension"]] == 0:
        return None
    axis = int(inner.params["dimension"])
    start, limit = node.params["start_indices"], node.params["limit_indices"]
    touched = [*_touched(inner.operands, axis, start[axis], limit[axis])]
    if len(touched) == 1:
        (window,) = touched
        part = (
            (*start[:axis], window.start[axis], *start[axis + 1 :]),
            (*limit[:axis], window.limit[axis], *limit[axis + 1 :]),
            strides_of(node),
        )
        return rewrite(join, window.source, axis=axis, cuts=(part,))
    return _rejoined(node, touched, axis) if len(touched) < len(inner.operands) else None


def _touched(pieces: Sequence[Value], axis: int, start: int, limit: int) -> list[Window]:
    """The parts of the pieces between `start` and `limit` of their concatenation."""
    found = []
    at = 0
    for piece in pieces:
        length = piece.shape[axis]
        first, stop = max(start - at, 0), min(limit - at, length)
        if first < stop:
            found.append(whole(piece).cut(axis, first, stop))
        at += length
    return found


def _rejoined(node: Node, touched: Sequence[Window], axis: int) -> Outcome:
    shape, wide = node.result.shape, node.operands[0].shape
    if any(shape[d] != wide[d] for d in range(len(shape)) if d != axis):
        return None
    if any(stride != 1 for stride in strides_of(node)) or not used_once(node.operands[0]):
        return None
    return _joined(touched, axis) if sum(not w.is_whole for w in touched) <= 1 else None


@movement_rule("split")
def split_of_concatenate(node: Node, ctx: PassContext) -> Outcome:
    """split(concatenate([x, y])) → x, y where it is cut between the pieces"""
    inner = made_by(node.operands[0], node, "concatenate")
    axis = node.params["axis"]
    if inner is None or inner.params["dimension"] != axis:
        return None
    pieces = [piece.shape[axis] for piece in inner.operands]
    return rewrite(itself, *inner.operands) if pieces == [*map(int, node.params["sizes"])] else None


@movement_rule("split")
def split_in_one(node: Node, ctx: PassContext) -> Outcome:
    """split(x, 1) → x"""
    return node.operands[0] if len(node.results) == 1 else None


@movement_rule("unstack")
def unstack_of_stack(node: Node, ctx: PassContext) -> Outcome:
    """unstack(stack(x, y)) → x, y on one axis"""
    inner = made_by(node.operands[0], node, "stack")
    if inner is None or inner.params["axis"] != node.params["axis"]:
        return None
    return rewrite(itself, *inner.operands)


@movement_rule("stack")
def stack_of_unstack(node: Node, ctx: PassContext) -> Outcome:
    """stack(unstack(x)) → x: all of it, in order, on one axis"""
    inner = made_by(node.operands[0], node, "unstack")
    if inner is None or inner.params["axis"] != node.params["axis"]:
        return None
    return inner.operands[0] if node.operands == inner.results else None


@movement_rule("tile")
def tile_once(node: Node, ctx: PassContext) -> Outcome:
    """tile(x, (1, …)) → x"""
    x = node.operands[0]
    return x if x.shape == node.result.shape and all(r == 1 for r in node.params["reps"]) else None


RULES: Final[tuple[Rule, ...]] = (
    concatenate_of_empty,
    concatenate_of_concatenate,
    concatenate_of_adjacent,
    slice_of_concatenate,
    split_of_concatenate,
    split_in_one,
    unstack_of_stack,
    stack_of_unstack,
    tile_once,
)
