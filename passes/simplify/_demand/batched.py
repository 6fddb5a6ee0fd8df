"""One row of each product of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import is_free, made_by, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Lines:
    """Which lines of a product a gather takes, hashable.

    Attributes:
        column: which column of the index has the numbers of the lines.
        axis: the dimension of the result that they are counted along.
        batched: for each dimension of the index, the dimension of the result that it goes with.
        kept: whether the result of the gather has a dimension of size one for `axis`.
        offsets: the dimensions of the gather's result that do not come from the index.
        mode: what happens out of bounds.
    """

    column: int
    axis: int
    batched: Dims
    kept: bool
    offsets: Dims
    mode: Any


@movement_rule("gather", level="reassociate", must_pay=True)
def line_of_each_dot(node: Node, ctx: PassContext) -> Outcome:
    """vmap(lambda A, B, i: (A @ B)[i]) → A[i] @ B for each of the batch; columns too

    Where nothing else reads the products. What is out of bounds gives the nearest line, as written.
    18× for 16 products of 256×256 (`python benchmarks/rewrites.py --only demand`).
    """
    dot = made_by(node.operands[0], node, "dot_general")
    lines = None if dot is None or not is_free(dot) else _lines(node)
    if dot is None or lines is None or len(dot.result.uses) != 1:
        return None
    for side in (0, 1):
        places = _places(dot, side)
        if lines.axis in places and all(d in places for d in lines.batched):
            own = tuple(places.index(d) for d in (lines.axis, *lines.batched))
            return rewrite(
                lines_of_dot,
                *dot.operands,
                node.operands[1],
                side=side,
                own=own,
                lines=lines,
                params=tuple(sorted(dot.params.items())),
                primitive=dot.primitive,
            )
    return None


def _lines(node: Node) -> Lines | None:
    """What a gather takes, if it is one line of each of a batch, all of it."""
    numbers, (x, index) = node.params["dimension_numbers"], node.operands
    batched = dict(
        zip(
            map(int, numbers.start_indices_batching_dims),
            map(int, numbers.operand_batching_dims),
            strict=True,
        )
    )
    if not batched or len(batched) != index.ndim - 1 or "FILL" in str(node.params["mode"]):
        return None
    sizes = node.params["slice_sizes"]
    cut = [d for d in range(x.ndim) if d not in batched.values() and sizes[d] != x.shape[d]]
    mapped = list(map(int, numbers.start_index_map))
    if len(cut) != 1 or sizes[cut[0]] != 1 or cut[0] not in mapped or x.shape[cut[0]] < 2:
        return None
    collapsed = set(map(int, numbers.collapsed_slice_dims))
    if not collapsed <= set(cut):
        return None  # other dimensions, of size one, go too
    return Lines(
        mapped.index(cut[0]),
        cut[0],
        tuple(batched[at] for at in range(index.ndim - 1)),
        cut[0] not in collapsed,
        tuple(map(int, numbers.offset_dims)),
        node.params["mode"],
    )


def _places(dot: Node, side: int) -> list[int]:
    """For each dimension of an operand, the dimension of the product that it is; -1 for those summed over."""
    summed, batch = dot.params["dimension_numbers"]
    free = [
        [d for d in range(dot.operands[s].ndim) if d not in summed[s] and d not in batch[s]] for s in (0, 1)
    ]
    first = len(batch[0]) + (len(free[0]) if side else 0)
    found = [-1] * dot.operands[side].ndim
    for place, d in enumerate(batch[side]):
        found[d] = place
    for place, d in enumerate(free[side]):
        found[d] = first + place
    return found


def lines_of_dot(
    a: jax.Array,
    b: jax.Array,
    index: jax.Array,
    *,
    side: int,
    own: Dims,
    lines: Lines,
    params: tuple[tuple[str, Any], ...],
    primitive: Any,
) -> jax.Array:
    """The lines of a product, from the lines of one of its operands.

    Args:
        index: the numbers of the lines, in one of the columns of its last dimension.
        side: the operand that has the lines.
        own: which of its dimensions they are counted along, then those that go with the index's.
    """
    x = (a, b)[side]
    number = lax.slice_in_dim(index, lines.column, lines.column + 1, axis=index.ndim - 1)
    axis, *batched = own
    order = sorted(range(len(batched)), key=lambda at: batched[at])
    number = lax.transpose(number, (*order, index.ndim - 1))
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(d for d in range(x.ndim) if d not in batched),
        collapsed_slice_dims=(),
        start_index_map=(axis,),
        operand_batching_dims=tuple(sorted(batched)),
        start_indices_batching_dims=tuple(range(len(batched))),
    )
    sizes = tuple(1 if d in own else length for d, length in enumerate(x.shape))
    part = lax.gather(x, number, numbers, sizes, mode=lines.mode)
    pair = (part, b) if side == 0 else (a, part)
    whole = primitive.bind(*pair, **dict(params))
    kept = iter(d for d in range(whole.ndim) if d not in lines.batched and (lines.kept or d != lines.axis))
    new = iter(lines.batched)
    rank = whole.ndim - (0 if lines.kept else 1)
    wanted = [next(kept) if d in lines.offsets else next(new) for d in range(rank)]
    if not lines.kept:
        whole = lax.squeeze(whole, (lines.axis,))
        wanted = [d - (d > lines.axis) for d in wanted]
    made: jax.Array = lax.transpose(whole, wanted)
    return made


RULES: Final[tuple[Rule, ...]] = (line_of_each_dot,)
