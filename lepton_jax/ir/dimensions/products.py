"""Products: dot and convolution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lepton_jax.ir.dimensions.atoms import Dims, Ints
from lepton_jax.ir.dimensions.walk import Choice, Option, Walk, dimension_rule
from lepton_jax.ir.graph import Node


@dimension_rule("dot_general")
def dot_general(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Contracted dimensions go together, batch dimensions too; the others are the result's."""
    (left_over, right_over), (left_batch, right_batch) = node.params["dimension_numbers"]
    left, right = operands
    for i, j in (*zip(left_over, right_over, strict=True), *zip(left_batch, right_batch, strict=True)):
        walk.atoms.unite(left[i], right[j])
    return [
        (
            *(left[i] for i in left_batch),
            *(atoms for i, atoms in enumerate(left) if i not in {*left_over, *left_batch}),
            *(atoms for i, atoms in enumerate(right) if i not in {*right_over, *right_batch}),
        )
    ]


@dimension_rule("ragged_dot_general", "ragged_product")
def ragged_dot_general(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """As `dot_general`, with rows that are counted: these, and the groups, stay."""
    numbers = node.params["ragged_dot_dimension_numbers"]
    (left_over, right_over), (left_batch, right_batch) = numbers.dot_dimension_numbers
    left, right, sizes = operands
    ragged, groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    why = "counts it in groups"
    walk.pin_all([tuple(left[i] for i in ragged), tuple(right[i] for i in groups), sizes], node, why)
    for i, j in (*zip(left_over, right_over, strict=True), *zip(left_batch, right_batch, strict=True)):
        walk.atoms.unite(left[i], right[j])
    free = [left[i] for i in left_batch]
    free += [atoms for i, atoms in enumerate(left) if i not in {*left_over, *left_batch}]
    free += [atoms for i, atoms in enumerate(right) if i not in {*right_over, *right_batch, *groups}]
    result = node.results[0]
    if len(free) < result.ndim:  # the contracted dimension is ragged: one result for each group
        new = walk.fresh_dim(result.shape[0])
        walk.pin(new, node, why)
        free.insert(0, new)
    return [tuple(free)]


@dimension_rule("conv_general_dilated")
def convolution(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Input features go with the kernel's inputs, the result's with its outputs; in groups, see below."""
    params, (left, kernel), result = node.params, operands, node.results[0]
    numbers = params["dimension_numbers"]
    (batch, feature, *space), (out, into, *window) = numbers.lhs_spec, numbers.rhs_spec
    dims: list[Ints | None] = [None] * result.ndim
    if params["batch_group_count"] > 1:
        walk.pin_all(operands, node, "has groups of batches")
        fresh = walk.fresh(result)
        walk.pin_all([fresh], node, "has groups of batches")
        return [fresh]
    dims[numbers.out_spec[0]], dims[numbers.out_spec[1]] = left[batch], kernel[out]
    for i, (place, mine, there) in enumerate(zip(numbers.out_spec[2:], space, window, strict=True)):
        if _slides(node, i, there):
            dims[place] = walk.fresh_dim(result.shape[place])
            walk.pin_all([(left[mine], kernel[there], _known(dims[place]))], node, "slides along it")
        else:
            dims[place] = left[mine]
    groups = params["feature_group_count"]
    if groups == 1:
        walk.atoms.unite(left[feature], kernel[into])
    else:
        walk.choices.append(_grouped(walk, node, left[feature], kernel[into], kernel[out], groups))
    return [tuple(_known(atoms) for atoms in dims)]


def _known(atoms: Ints | None) -> Ints:
    assert atoms is not None
    return atoms


def _slides(node: Node, i: int, window: int) -> bool:
    """Whether a window of more than one element moves along a dimension, or steps over some of it."""
    params = node.params
    return (
        node.operands[1].shape[window] != 1
        or params["window_strides"][i] != 1
        or tuple(params["padding"][i]) != (0, 0)
        or (params["lhs_dilation"] or (1,) * (i + 1))[i] != 1
    )


def _grouped(walk: Walk, node: Node, features: Ints, into: Ints, out: Ints, groups: int) -> Choice:
    """Whole groups go, or the same share of each group."""
    inputs, outputs = features.reshape(groups, -1), out.reshape(groups, -1)
    taken = walk.reason(node, f"reads it in each of its {groups} groups, and whole groups are what is cut")
    head = inputs[:, :1]
    whole = Option([(inputs, head), (outputs, head)], [(into, taken)], [features, out])
    share = Option([(inputs, into[None, :]), (outputs, outputs[:1])], [], [])
    reason = walk.reason(node, "has groups that are neither cut whole nor in part")
    options = [whole, share] if inputs.shape[1] > 1 or outputs.shape[1] > 1 else [whole]
    return Choice(options, [], [features, into, out], reason)


def coordinates(sizes: Sequence[int], dim: int) -> Ints:
    """Of each element of an array of this shape, in order, its index along a dimension: int64."""
    inner = int(np.prod(sizes[dim + 1 :], dtype=np.int64))
    return (
        np.arange(int(np.prod(sizes, dtype=np.int64)), dtype=np.int64) // max(inner, 1) % max(sizes[dim], 1)
    )
