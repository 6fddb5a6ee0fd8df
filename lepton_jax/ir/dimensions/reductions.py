"""Reductions, scans along a dimension, windows, sorting."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jax.ir.dimensions.atoms import Dims
from lepton_jax.ir.dimensions.elementwise import united
from lepton_jax.ir.dimensions.walk import Walk, dimension_rule
from lepton_jax.ir.graph import Node


@dimension_rule(
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"),
    *("argmax", "argmin"),
)
def reduction(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """The dimensions that are left; where the result is an index, the one that it counts is pinned."""
    axes = {int(axis) for axis in node.params["axes"]}
    if node.op in ("argmax", "argmin"):
        for axis in axes:
            walk.pin(operands[0][axis], node, "gives an index of it")
    return [tuple(atoms for dim, atoms in enumerate(operands[0]) if dim not in axes)]


@dimension_rule("reduce")
def reduce(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """As `reduction`, of several arrays at once."""
    axes = set(node.params["dimensions"])
    count = len(node.results)
    for dims in operands[1:count]:
        walk.unite(operands[0], dims)
    return [tuple(atoms for dim, atoms in enumerate(operands[0]) if dim not in axes)] * count


@dimension_rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """The order of the dimension matters."""
    walk.pin(operands[0][node.params["axis"]], node, "goes along it in order")
    return list(operands)


@dimension_rule("sort")
def sort(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """The order of the dimension is another one after it."""
    dims = united(walk, node.results[0], node.operands)
    walk.pin(dims[node.params["dimension"]], node, "orders it anew")
    return [dims] * len(node.results)


@dimension_rule("top_k", "approx_top_k")
def top_k(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """As `sort`, and only some are left."""
    (dims,), result = operands, node.results[0]
    axis = node.params.get("axis", node.params.get("reduction_dimension", -1)) % len(dims)
    left = walk.fresh_dim(result.shape[axis])
    walk.pin_all([(dims[axis], left)], node, "orders it anew")
    return [(*dims[:axis], left, *dims[axis + 1 :])] * len(node.results)


@dimension_rule("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min")
def reduce_window(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Dimensions along which the window does not move are as they were."""
    params, result = node.params, node.results[0]
    found = list(operands[0])
    count = len(node.results)
    for dims in operands[1:count]:
        walk.unite(operands[0], dims)
    for dim, atoms in enumerate(operands[0]):
        still = (
            params["window_dimensions"][dim] == 1
            and params["window_strides"][dim] == 1
            and tuple(params["padding"][dim]) == (0, 0)
            and params["base_dilation"][dim] == 1
        )
        if not still:
            found[dim] = walk.fresh_dim(result.shape[dim])
            walk.pin_all([(atoms, found[dim])], node, "slides along it")
    return [tuple(found)] * count


@dimension_rule("select_and_scatter_add", "select_and_gather_add")
def select_in_window(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Of a pooling's gradient: dimensions along which the window does not move go together."""
    params, result = node.params, node.results[0]
    first, second = operands[:2]
    shapes = [value.shape for value in node.operands[:2]]
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    found = []
    for dim, size in enumerate(result.shape):
        still = window[dim] == 1 and strides[dim] == 1 and tuple(padding[dim]) == (0, 0)
        if still and shapes[0][dim] == shapes[1][dim] == size:
            walk.atoms.unite(first[dim], second[dim])
            found.append(first[dim])
            continue
        found.append(walk.fresh_dim(size))
        walk.pin_all([(first[dim], second[dim], found[-1])], node, "slides along it")
    return [tuple(found)]


@dimension_rule("fft")
def fft(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """The last dimensions are transformed."""
    (dims,), result = operands, node.results[0]
    count = len(node.params["fft_lengths"])
    made = tuple(walk.fresh_dim(size) for size in result.shape[result.ndim - count :])
    walk.pin_all([dims[len(dims) - count :], made], node, "transforms it")
    return [(*dims[: len(dims) - count], *made)]
