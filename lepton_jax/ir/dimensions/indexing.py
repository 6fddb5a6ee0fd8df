"""Slices, padding, gather and scatter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lepton_jax.ir.dimensions.atoms import Dims, Ints
from lepton_jax.ir.dimensions.walk import Walk, dimension_rule
from lepton_jax.ir.graph import Node


@dimension_rule("slice", reads=False)
def slice_(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """A window of each dimension."""
    params, result = node.params, node.results[0]
    strides = params["strides"] or (1,) * result.ndim
    found = []
    for dim, atoms in enumerate(operands[0]):
        old, new = node.operands[0].shape[dim], result.shape[dim]
        if old == new and strides[dim] == 1:
            found.append(atoms)
        elif type(old) is int and type(new) is int:
            found.append(atoms[params["start_indices"][dim] : params["limit_indices"][dim] : strides[dim]])
        else:
            found.append(walk.fresh_dim(new))
            walk.pin_all([(atoms, found[-1])], node, "cuts a symbolic size")
    walk.note_read(tuple(found))
    return [tuple(found)]


@dimension_rule("split", reads=False)
def split(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Windows of a dimension."""
    axis, dims = node.params["axis"], operands[0]
    if not all(type(value.shape[axis]) is int for value in (*node.operands, *node.results)):
        windows = [walk.fresh_dim(value.shape[axis]) for value in node.results]
        walk.pin_all([(dims[axis], *windows)], node, "cuts a symbolic size")
    else:
        ends = np.cumsum([0, *node.params["sizes"]])
        windows = [dims[axis][start:end] for start, end in pairwise(ends)]
    found = [(*dims[:axis], window, *dims[axis + 1 :]) for window in windows]
    for value, each in zip(node.results, found, strict=True):
        if value.uses:
            walk.note_read(each)
    return found


@dimension_rule("dynamic_slice")
def dynamic_slice(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Dimensions that are taken whole are the same; others are pinned."""
    source, result = node.operands[0], node.results[0]
    found = []
    for dim, (atoms, size) in enumerate(zip(operands[0], result.shape, strict=True)):
        if source.shape[dim] == size:
            found.append(atoms)
        else:
            found.append(walk.fresh_dim(size))
            walk.pin_all([(atoms, found[-1])], node, "starts where a number says")
    return [tuple(found)]


@dimension_rule("dynamic_update_slice")
def dynamic_update_slice(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Dimensions that are written whole go together, others are pinned."""
    base, update = operands[:2]
    for dim, (old, new) in enumerate(zip(base, update, strict=True)):
        if node.operands[0].shape[dim] == node.operands[1].shape[dim]:
            walk.atoms.unite(old, new)
        else:
            walk.pin_all([(old, new)], node, "starts where a number says")
    return [base]


@dimension_rule("pad")
def pad(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Entries that are added have atoms of their own."""
    found = []
    result = node.results[0]
    for dim, (atoms, (low, high, inner)) in enumerate(
        zip(operands[0], node.params["padding_config"], strict=True)
    ):
        if low == high == inner == 0:
            found.append(atoms)
        elif type(result.shape[dim]) is not int or inner:
            found.append(walk.fresh_dim(result.shape[dim]))
            walk.pin_all([(atoms, found[-1])], node, "puts elements between")
        else:
            before, after = walk.atoms.fresh(max(low, 0)), walk.atoms.fresh(max(high, 0))
            padded = np.concatenate([before, atoms, after])
            found.append(padded[max(-low, 0) : len(padded) - max(-high, 0)])
    return [tuple(found)]


@dimension_rule("gather")
def gather(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """What indices point into is pinned; what is taken whole is the result's, as are the indices' own."""
    numbers = node.params["dimension_numbers"]
    source, result = node.operands[0], node.results[0]
    dims, indices = operands
    sizes = node.params["slice_sizes"]
    walk.pin(indices[-1], node, "reads indices from it")
    taken: list[Ints] = []
    for dim, atoms in enumerate(dims):
        whole = sizes[dim] == source.shape[dim] and dim not in numbers.start_index_map
        if dim in numbers.operand_batching_dims:
            place = numbers.operand_batching_dims.index(dim)
            walk.atoms.unite(atoms, indices[numbers.start_indices_batching_dims[place]])
            continue
        if not whole:
            walk.pin(atoms, node, "points into it")
        if dim not in numbers.collapsed_slice_dims:
            taken.append(atoms if whole else _made(walk, node, sizes[dim]))
    inside, outside = iter(taken), iter(indices[:-1])
    return [tuple(next(inside if dim in numbers.offset_dims else outside) for dim in range(result.ndim))]


def _made(walk: Walk, node: Node, size: int) -> Ints:
    found = walk.fresh_dim(size)
    walk.pin(found, node, "reads it where indices point")
    return found


@dimension_rule("scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter-sub")
def scatter(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """As `gather` the other way round; several operands are written at once."""
    numbers = node.params["dimension_numbers"]
    count = len(node.results)
    base, indices, update = operands[0], operands[count], operands[count + 1]
    for i in range(1, count):
        walk.unite(base, operands[i])
        walk.unite(update, operands[count + 1 + i])
    walk.pin(indices[-1], node, "reads indices from it")
    shape, window_shape = node.operands[0].shape, node.operands[count + 1].shape
    windows, rows = iter(numbers.update_window_dims), iter(indices[:-1])
    for dim, atoms in enumerate(base):
        if dim in numbers.operand_batching_dims:
            place = numbers.operand_batching_dims.index(dim)
            walk.atoms.unite(atoms, indices[numbers.scatter_indices_batching_dims[place]])
            continue
        if dim in numbers.inserted_window_dims:
            walk.pin(atoms, node, "points into it")
            continue
        window = next(windows)
        if window_shape[window] == shape[dim] and dim not in numbers.scatter_dims_to_operand_dims:
            walk.atoms.unite(atoms, update[window])
        else:
            walk.pin_all([(atoms, update[window])], node, "points into it")
    for dim, atoms in enumerate(update):
        if dim not in numbers.update_window_dims:
            walk.atoms.unite(atoms, next(rows))
    return [base] * count
