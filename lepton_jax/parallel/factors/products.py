"""Products: dot and convolution."""

from __future__ import annotations

from lepton_jax.ir.graph import Node
from lepton_jax.parallel.factors.build import Build, opaque
from lepton_jax.parallel.factors.rule import Dims, Factors, factor_rule


@factor_rule("dot_general")
def dot_general(node: Node) -> Factors:
    """Batch dimensions, those of the left, those of the right, those that are summed over; in this order."""
    (left_over, right_over), (left_batch, right_batch) = node.params["dimension_numbers"]
    build, (left, right) = Build(), node.operands
    mine: list[tuple[int, ...]] = [()] * left.ndim
    theirs: list[tuple[int, ...]] = [()] * right.ndim
    result: list[tuple[int, ...]] = []
    for i, j in zip(left_batch, right_batch, strict=True):
        mine[i] = theirs[j] = build.new(left.shape[i])
        result.append(mine[i])
    for i in range(left.ndim):
        if i not in left_over and i not in left_batch:
            mine[i] = build.new(left.shape[i])
            result.append(mine[i])
    for j in range(right.ndim):
        if j not in right_over and j not in right_batch:
            theirs[j] = build.new(right.shape[j])
            result.append(theirs[j])
    for i, j in zip(left_over, right_over, strict=True):
        mine[i] = theirs[j] = build.new(left.shape[i], reduced="add")
    return build.done([tuple(mine), tuple(theirs)], [tuple(result)], [{0}, {1}])


@factor_rule("ragged_dot_general", "ragged_product")
def ragged_dot_general(node: Node) -> Factors:
    """As `dot_general`; rows that are counted in groups stay whole, and so do the groups."""
    numbers = node.params["ragged_dot_dimension_numbers"]
    (left_over, right_over), (left_batch, right_batch) = numbers.dot_dimension_numbers
    ragged, grouped = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    if len(node.operands) != 3 or node.operands[2].ndim != 1:
        return opaque(node)
    build, (left, right, counts) = Build(), node.operands
    mine: list[tuple[int, ...]] = [()] * left.ndim
    theirs: list[tuple[int, ...]] = [()] * right.ndim
    result: list[tuple[int, ...]] = []
    if any(i in ragged for i in left_over):
        result.append(build.new(counts.shape[0], whole=True))
    for i, j in zip(left_batch, right_batch, strict=True):
        mine[i] = theirs[j] = build.new(left.shape[i], whole=i in ragged)
        result.append(mine[i])
    for i in range(left.ndim):
        if i not in left_over and i not in left_batch:
            mine[i] = build.new(left.shape[i], whole=i in ragged)
            result.append(mine[i])
    for j in range(right.ndim):
        if j not in right_over and j not in right_batch:
            theirs[j] = build.new(right.shape[j], whole=j in grouped)
            if j not in grouped:
                result.append(theirs[j])
    for i, j in zip(left_over, right_over, strict=True):
        mine[i] = theirs[j] = build.new(left.shape[i], whole=i in ragged, reduced="add")
    groups = build.new(counts.shape[0], whole=True)
    return build.done([tuple(mine), tuple(theirs), (groups,)], [tuple(result)], [{0}, {1}])


@factor_rule("conv_general_dilated")
def convolution(node: Node) -> Factors:
    """Batch, features and groups; a dimension along which a window slides stays whole.

    With groups, features are (group, feature of the group); with groups of batches, so is the batch.
    """
    numbers, build, (left, kernel) = node.params["dimension_numbers"], Build(), node.operands
    (n, c, *space), (o, i, *window) = numbers.lhs_spec, numbers.rhs_spec
    groups, batches = node.params["feature_group_count"], node.params["batch_group_count"]
    group = build.new(max(groups, batches))
    batch = build.new(left.shape[n] // batches)
    out = build.new(kernel.shape[o] // max(groups, batches))
    into = build.new(kernel.shape[i], reduced="add")
    mine: list[tuple[int, ...]] = [()] * left.ndim
    theirs: list[tuple[int, ...]] = [()] * kernel.ndim
    result: list[tuple[int, ...]] = [()] * left.ndim
    mine[n] = (*group, *batch) if batches > 1 else batch
    mine[c] = (*group, *into) if groups > 1 else into
    theirs[o], theirs[i] = (*group, *out), into
    result[numbers.out_spec[0]], result[numbers.out_spec[1]] = batch, (*group, *out)
    for place, (a, b, r) in enumerate(zip(space, window, numbers.out_spec[2:], strict=True)):
        if slides(node, place, kernel.shape[b]):
            mine[a] = build.new(left.shape[a], whole=True)
            theirs[b] = build.new(kernel.shape[b], whole=True)
            result[r] = build.new(node.results[0].shape[r], whole=True)
        else:
            mine[a] = result[r] = build.new(left.shape[a])
    dims: list[Dims] = [tuple(mine), tuple(theirs)]
    return build.done(dims, [tuple(result)], [{0}, {1}])


def slides(node: Node, place: int, size: int) -> bool:
    """Whether a window of more than one element moves along a dimension, or steps over some of it."""
    params = node.params
    dilation = params["lhs_dilation"]
    return (
        size != 1
        or params["window_strides"][place] != 1
        or tuple(params["padding"][place]) != (0, 0)
        or (dilation is not None and dilation[place] != 1)
    )
