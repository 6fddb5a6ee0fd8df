"""Operations that only bring elements to other places, all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lepton_jax.ir.graph import Node
from lepton_jax.parallel.factors.build import Build, opaque
from lepton_jax.parallel.factors.rule import Dims, Factors, factor_rule


@factor_rule("transpose")
def transpose(node: Node) -> Factors:
    """The dimensions in another order."""
    build = Build()
    dims = build.each(node.operands[0])
    return build.done([dims], [tuple(dims[dim] for dim in node.params["permutation"])], [{0}])


@factor_rule("rev")
def rev(node: Node) -> Factors:
    """What is turned round stays whole: the first part becomes the last."""
    build, turned = Build(), set(node.params["dimensions"])
    dims = tuple(build.new(size, whole=dim in turned) for dim, size in enumerate(node.operands[0].shape))
    return build.done([dims], [dims], [{0}])


@factor_rule("broadcast_in_dim")
def broadcast_in_dim(node: Node) -> Factors:
    """Dimensions that stay are the same; each device makes its part of those that are new."""
    build, source, result = Build(), node.operands[0], node.results[0]
    made = build.each(result)
    places = node.params["broadcast_dimensions"]
    dims = tuple(
        made[place] if source.shape[dim] == result.shape[place] else () for dim, place in enumerate(places)
    )
    rest: list[Dims] = [()] * (len(node.operands) - 1)
    return build.done([dims, *rest], [made], [{0}])


@factor_rule("squeeze", "expand_dims")
def squeeze(node: Node) -> Factors:
    """Without dimensions of size 1, or with some more."""
    return _reshaped(node)


@factor_rule("reshape")
def reshape(node: Node) -> Factors:
    """Dimensions taken apart and put together, major factor first.

    From [6, 4] to [3, 8] come the factors 3, 2, 4: ((3, 2), (4)) becomes ((3), (2, 4)). Where sizes have no
    such common refinement, as from [4, 3] to [6, 2], the major part that they share is a factor (here 2)
    and the rest stays whole.
    """
    if node.params.get("dimensions") is not None:
        return opaque(node)
    return _reshaped(node)


def _reshaped(node: Node) -> Factors:
    build, source, result = Build(), node.operands[0], node.results[0]
    mine: list[tuple[int, ...]] = [()] * source.ndim
    made: list[tuple[int, ...]] = [()] * result.ndim
    if 0 in source.shape:
        return opaque(node)
    for before, after in _blocks(source.shape, result.shape):
        left = [source.shape[dim] for dim in before]
        right = [result.shape[dim] for dim in after]
        i = j = 0
        while i < len(left) and j < len(right):
            common = math.gcd(left[i], right[j])
            if common == 1:
                break
            factor = build.new(common)
            mine[before[i]] += factor
            made[after[j]] += factor
            left[i] //= common
            right[j] //= common
            stuck = left[i] > 1 and right[j] > 1
            i += left[i] == 1
            j += right[j] == 1
            if stuck:
                break
        for dim, size in list(zip(before, left, strict=True))[i:]:
            mine[dim] += build.new(size, whole=True)
        for dim, size in list(zip(after, right, strict=True))[j:]:
            made[dim] += build.new(size, whole=True)
    return build.done([tuple(mine)], [tuple(made)], [{0}])


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions that hold the same elements, in order, without those of size 1."""
    left = [dim for dim, size in enumerate(before) if size != 1][::-1]
    right = [dim for dim, size in enumerate(after) if size != 1][::-1]
    while left and right:
        mine, theirs = [left.pop()], [right.pop()]
        a, b = before[mine[0]], after[theirs[0]]
        while a != b:
            if a < b:
                mine.append(left.pop())
                a *= before[mine[-1]]
            else:
                theirs.append(right.pop())
                b *= after[theirs[-1]]
        yield mine, theirs


@factor_rule("tile")
def tile(node: Node) -> Factors:
    """A dimension that is repeated is (repetition, what it was)."""
    build, reps = Build(), node.params["reps"]
    mine, made = [], []
    for size, rep in zip(node.operands[0].shape, reps, strict=True):
        outer, inner = build.new(rep), build.new(size)
        mine.append(inner)
        made.append((*outer, *inner))
    return build.done([tuple(mine)], [tuple(made)], [{0}])


@factor_rule("bitcast_convert_type")
def bitcast(node: Node) -> Factors:
    """The same elements, or the last dimension taken apart or put together: this one stays whole."""
    build, source, result = Build(), node.operands[0], node.results[0]
    common = min(source.ndim, result.ndim)
    shared = [build.new(size) for size in source.shape[:common]]
    mine = [build.new(size, whole=True) for size in source.shape[common:]]
    made = [build.new(size, whole=True) for size in result.shape[common:]]
    return build.done([tuple(shared + mine)], [tuple(shared + made)])
