"""Sums of gradients of parts that lie side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import jax
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import bind, made_by, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_MOST_TERMS: Final = 512

_LEAST_PIECES: Final = 4
_LEAST_COLUMNS: Final = 8


class Block(NamedTuple):
    """An array padded with zeros along one axis: where it begins and ends there."""

    axis: int
    start: int
    stop: int
    value: Value


@movement_rule("add_any", "add", level="reassociate")
def sum_of_pads(node: Node, ctx: PassContext) -> Outcome:
    """pad(x) + pad(y) + … + rest → concatenate(x, y, …) + rest, where the pads do not overlap

    What slices of one array leave when they are differentiated. Zeros fill what none of them covers. Zeros
    lose their sign. Not for a few pieces, which XLA adds up in one loop as fast.
    7× for 64 slices (`python benchmarks/rewrites.py --only gradients`).
    """
    if not _is_root(node):
        return None
    terms = _terms(node)
    if terms is None:
        return None
    found = [(term, block_of(term, node)) for term in terms]
    blocks = sorted((block for _, block in found if block is not None), key=lambda block: block[:3])
    if len(blocks) < _LEAST_PIECES or any(block.axis != blocks[0].axis for block in blocks):
        return None
    if blocks[0].axis == node.result.ndim - 1 and node.result.ndim > 1 and len(blocks) < _LEAST_COLUMNS:
        return None
    if any(first.stop > second.start for first, second in pairwise(blocks)):
        return None
    rest = [term for term, block in found if block is None]
    bounds = tuple((block.start, block.stop) for block in blocks)
    values = (*(block.value for block in blocks), *rest)
    return rewrite(
        side_by_side,
        *values,
        bounds=bounds,
        axis=blocks[0].axis,
        shape=node.result.shape,
        primitive=node.primitive,
        params=tuple(sorted(node.params.items())),
    )


def _is_root(node: Node) -> bool:
    """Whether a sum is the last of its chain."""
    if node.operands[0].op not in ("pad", node.op) and node.operands[1].op not in ("pad", node.op):
        return False
    if len(node.result.uses) != 1:
        return True
    ((user, _),) = node.result.uses
    return user.op != node.op


def _terms(node: Node) -> list[Value] | None:
    """What a chain of sums adds up; None if that is too much."""
    found: list[Value] = []
    stack = list(node.operands)[::-1]
    while stack:
        value = stack.pop()
        if value.shape != node.result.shape or len(found) > _MOST_TERMS:
            return None
        inner = made_by(value, node, node.op)
        if inner is not None and len(value.uses) == 1:
            stack += inner.operands[::-1]
        else:
            found.append(value)
    return found


def block_of(value: Value, node: Node) -> Block | None:
    """The array that a value pads with zeros along one axis, if this is all that reads it."""
    pad = made_by(value, node, "pad")
    if pad is None or len(value.uses) != 1 or not facts_of(pad.operands[1]).is_zero:
        return None
    axes = [d for d, widths in enumerate(pad.params["padding_config"]) if any(widths[:2])]
    if any(map(_is_not_plain, pad.params["padding_config"])) or len(axes) != 1:
        return None
    start = int(pad.params["padding_config"][axes[0]][0])
    return Block(axes[0], start, start + pad.operands[0].shape[axes[0]], pad.operands[0])


def _is_not_plain(widths: Sequence[int]) -> bool:
    low, high, within = widths
    return low < 0 or high < 0 or within > 0


def side_by_side(
    *arrays: jax.Array,
    bounds: tuple[tuple[int, int], ...],
    axis: int,
    shape: tuple[int, ...],
    primitive: Any,
    params: tuple[tuple[str, Any], ...],
) -> jax.Array:
    """Blocks in their places along an axis, with zeros between them, plus the other arrays."""
    blocks, rest = arrays[: len(bounds)], arrays[len(bounds) :]
    pieces: list[jax.Array] = []
    at = 0
    for block, (start, stop) in zip(blocks, bounds, strict=True):
        if start > at:
            pieces.append(_zeros(block, axis, start - at))
        pieces.append(block)
        at = stop
    if at < shape[axis]:
        pieces.append(_zeros(blocks[0], axis, shape[axis] - at))
    total: jax.Array = lax.concatenate(pieces, axis)
    for other in rest:
        total = bind(total, other, primitive=primitive, params=params)
    return total


def _zeros(like: jax.Array, axis: int, length: int) -> jax.Array:
    return lax.full((*like.shape[:axis], length, *like.shape[axis + 1 :]), 0, like.dtype)


RULES: Final[tuple[Rule, ...]] = (sum_of_pads,)
