"""Parts of reshapes and reversals that are parts of what is reshaped or reversed, elsewhere."""

from __future__ import annotations

import jax
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._demand.readers import Cuts, Reading, part_of
from lepton_jax.passes.simplify._movement.common import is_free, size
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import Rewrite

Cut = tuple[int, int, int]


def part_of_view(maker: Node, reading: Reading) -> Rewrite | None:
    """A slice of a reshape that splits dimensions, or of a reversal, as the same of a slice.

    Example:
        (A @ B).reshape(rows, heads, width)[:, 2] reads the columns 2 * width … 3 * width of A @ B.
    """
    if reading.kind != "slice" or not is_free(maker) or len(maker.operands) != 1:
        return None
    if maker.op == "rev":
        return _reversed(maker, reading)
    return _split(maker, reading) if maker.op == "reshape" else None


def _split(maker: Node, reading: Reading) -> Rewrite | None:
    """Where what is cut is the first of the dimensions that one of the operand is split into."""
    wide, shape = maker.operands[0].shape, maker.result.shape
    if maker.params["dimensions"] is not None or 0 in wide:
        return None
    starts = {size(wide[:i]): i for i, length in enumerate(wide) if length > 1}
    cuts: dict[int, Cut] = {}
    for d, (start, limit, stride) in reading.cuts:
        i = starts.get(size(shape[:d]))
        if i is None or wide[i] % shape[d]:
            return None
        inner, end = 1, d + 1
        while end < len(shape) and inner * shape[d] < wide[i]:
            inner *= shape[end]
            end += 1
        whole = not any(d < other < end for other in reading.dimensions)
        if inner * shape[d] != wide[i] or not whole or (inner > 1 and stride > 1):
            return None
        cuts[i] = (start * inner, limit * inner, stride)
    order = tuple(sorted(cuts.items()))
    return rewrite(reshaped_part, maker.operands[0], cuts=order, shape=reading.shape(shape))


def _reversed(maker: Node, reading: Reading) -> Rewrite:
    shape, turned = maker.result.shape, tuple(maker.params["dimensions"])
    cuts = tuple((d, _from_the_end(cut, shape[d]) if d in turned else cut) for d, cut in reading.cuts)
    return rewrite(reversed_part, maker.operands[0], cuts=cuts, dimensions=turned)


def _from_the_end(cut: Cut, length: int) -> Cut:
    """What a slice of a reversed dimension takes, where it is not reversed."""
    start, limit, stride = cut
    last = start + max(len(range(start, limit, stride)) - 1, 0) * stride
    return (length - 1 - last, length - start, stride) if limit > start else (length - start,) * 2 + (stride,)


def reshaped_part(x: jax.Array, *, cuts: Cuts, shape: tuple[int, ...]) -> jax.Array:
    """A part of `x` in another shape."""
    return lax.reshape(part_of(x, "slice", cuts, ()), shape)


def reversed_part(x: jax.Array, *, cuts: Cuts, dimensions: tuple[int, ...]) -> jax.Array:
    """A part of `x` reversed along some dimensions."""
    return lax.rev(part_of(x, "slice", cuts, ()), dimensions)
