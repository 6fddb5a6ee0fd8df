"""Reshape: dimensions taken apart and put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lepton_jax.ir.dimensions.atoms import Dims, Ints
from lepton_jax.ir.dimensions.products import coordinates
from lepton_jax.ir.dimensions.walk import Choice, Option, Walk, dimension_rule
from lepton_jax.ir.graph import Node

Block = tuple[list[int], list[int]]
"""Dimensions of the operand and of the result that hold the same elements."""


@dimension_rule("reshape")
def reshape(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Of dimensions that are put together one is cut, the outermost that can be; so of those taken apart.

    With (heads, width) made of one dimension, an index of it goes with its head, and the width stays. With
    (height, width, channels) put together, where height and width are pinned, an index goes with its channel.
    """
    (dims,), source, result = operands, node.operands[0], node.results[0]
    if node.params.get("dimensions") is not None:
        fresh = walk.fresh(result)
        walk.pin_all([dims, fresh], node, "takes its elements in another order")
        return [fresh]
    found: dict[int, Ints] = {}
    for before, after in _blocks(source.shape, result.shape):
        if len(before) == len(after) == 1:
            found[after[0]] = dims[before[0]]
            continue
        made = [walk.fresh_dim(result.shape[i]) for i in after]
        found.update(zip(after, made, strict=True))
        sizes = [source.shape[i] for i in before], [result.shape[i] for i in after]
        if any(type(size) is not int for size in (*sizes[0], *sizes[1])) or not all((*sizes[0], *sizes[1])):
            walk.pin_all([tuple(dims[i] for i in before), tuple(made)], node, "joins it to a symbolic size")
            continue
        _tie(walk, node, [dims[i] for i in before], made)
    return [tuple(found[i] if i in found else walk.fresh_dim(size) for i, size in enumerate(result.shape))]


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[Block]:
    """The smallest runs of dimensions with the same elements, the last first, without those of size 1.

    What stands before a symbolic dimension that is taken apart or put together is one run.
    """
    left = [i for i, size in enumerate(before) if not _is_one(size)]
    right = [i for i, size in enumerate(after) if not _is_one(size)]
    if 0 in before:
        yield left, right
        return
    while left and right:
        mine, theirs = [left.pop()], [right.pop()]
        a, b = before[mine[0]], after[theirs[0]]
        while a != b:
            if type(a) is not int or type(b) is not int:
                yield left + mine, right + theirs
                return
            if a < b:
                mine.insert(0, left.pop())
                a *= before[mine[0]]
            else:
                theirs.insert(0, right.pop())
                b *= after[theirs[0]]
        yield mine, theirs


def _is_one(size: int) -> bool:
    return type(size) is int and size == 1


def _tie(walk: Walk, node: Node, before: Sequence[Ints], after: Sequence[Ints]) -> None:
    """Tie both sides to the elements that they hold."""
    if len(before) == 1:
        flat = before[0]
    elif len(after) == 1:
        flat = after[0]
    else:
        flat = walk.atoms.fresh(len(coordinates([len(atoms) for atoms in before], 0)))
    for side, done in ((before, "puts it together"), (after, "takes it apart")):
        if len(side) > 1:
            walk.choices.append(_carrier(walk, node, flat, side, done))


def _carrier(walk: Walk, node: Node, flat: Ints, side: Sequence[Ints], done: str) -> Choice:
    """One of the dimensions goes with the elements, the others stay."""
    sizes = [len(atoms) for atoms in side]
    shape = " × ".join(map(str, sizes))
    options = []
    for dim, atoms in enumerate(side):
        why = walk.reason(node, f"{done} ({shape}), and dimension {dim} of these is what is cut")
        rest = [(other, why) for i, other in enumerate(side) if i != dim]
        options.append(Option([(flat, atoms[coordinates(sizes, dim)])], rest, [atoms]))
    whole = walk.reason(node, f"{done} ({shape}) with what cannot be cut")
    return Choice(options, [flat], [flat, *side], whole)
