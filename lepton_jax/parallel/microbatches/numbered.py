"""Reads and writes that find each row by its number: `logits[jnp.arange(batch), labels]`.

Such an index points along the examples, yet at each example's own row. A gather or scatter with batching
dimensions says so, and can be cut along them.
"""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.importer import copy_equations, struct_of
from lepton_jax.ir.regions import outer_of

_LARGEST: Final = 1 << 20
"""Constants of more elements are not read."""

_CLOSED: Final = frozenset({"custom_jvp_call", "custom_vjp_call", "shard_map", "custom_linear_solve"})
"""Operations whose regions stand beside rules, or see other arrays: these are left as they are."""


def tie_numbered_rows(graph: Graph) -> None:
    """Write `x[arange(n), i]` as `take_along_axis` makes it, and scatters likewise; the same elements.

    In regions too. Dimensions of `x` that an index counts through become batching dimensions.

    Example:
        `gather(x[8,5], [[0, i0], [1, i1], …])` becomes `gather(x[8,5], [[i0], [i1], …])` with the batching
        dimension 0.
    """
    closed = {
        inner for node in graph.walk() if node.op in _CLOSED for r in node.regions for inner in r.graphs()
    }
    for inner in graph.graphs():
        if inner in closed:
            continue
        for node in list(inner):
            if node.op == "gather" or node.op.startswith("scatter"):
                _tie(node, inner)


def _tie(node: Node, graph: Graph) -> None:
    read = node.op == "gather"
    numbers, place = node.params["dimension_numbers"], 1 if read else len(node.results)
    pointed = numbers.start_index_map if read else numbers.scatter_dims_to_operand_dims
    gone = numbers.collapsed_slice_dims if read else numbers.inserted_window_dims
    taken = numbers.start_indices_batching_dims if read else numbers.scatter_indices_batching_dims
    index, shape = node.operands[place], node.operands[0].shape
    counted: dict[int, int] = {}
    columns: dict[int, int] = {}
    for column, dim in enumerate(pointed):
        found = _counted(index, column) if dim in gone else None
        if found is None or index.shape[found] != shape[dim] or found in (*taken, *counted.values()):
            continue
        counted[int(dim)], columns[column] = found, found
    left = [column for column in range(len(pointed)) if column not in columns]
    if not counted or not left:
        return
    pairs = dict(zip(numbers.operand_batching_dims, taken, strict=True)) | counted
    batching = {
        "operand_batching_dims": tuple(sorted(pairs)),
        ("start_indices_batching_dims" if read else "scatter_indices_batching_dims"): tuple(
            pairs[dim] for dim in sorted(pairs)
        ),
        ("collapsed_slice_dims" if read else "inserted_window_dims"): tuple(
            d for d in gone if d not in counted
        ),
        ("start_index_map" if read else "scatter_dims_to_operand_dims"): tuple(pointed[c] for c in left),
    }
    changed = {"dimension_numbers": numbers._replace(**batching), "indices_are_sorted": False}
    _write(node, graph, place, left, changed)


def _write(node: Node, graph: Graph, place: int, left: list[int], changed: dict[str, Any]) -> None:
    """Put the operation with other numbers, on some columns of its index, in the place of a node."""
    params = {**(node.params if node.raw is None else node.raw), **changed}

    def tied(*operands: Any) -> Any:
        index = operands[place]
        kept = [jax.lax.slice_in_dim(index, c, c + 1, axis=index.ndim - 1) for c in left]
        columns = kept[0] if len(kept) == 1 else jnp.concatenate(kept, -1)
        found = node.primitive.bind(*operands[:place], columns, *operands[place + 1 :], **params)
        return list(found) if node.primitive.multiple_results else [found]

    with _jax.Placement() as placement, placement.at(None, node.context):
        traced = _jax.trace_flat(tied, list(map(struct_of, node.operands)))
    before = node.prev
    results = copy_equations(traced, list(node.operands), graph, node, {})
    fresh = node.prev
    while fresh is not None and fresh is not before:
        fresh.source = node.source
        fresh = fresh.prev
    for old, new in zip(node.results, results, strict=True):
        old.replace_uses(new)
    graph.erase(node)


def _counted(index: Value, column: int) -> int | None:
    """The dimension of an index along which a column of it counts 0, 1, 2, …; None if it does not."""
    index, last = _source(index), index.ndim - 1
    maker = index.node
    if maker is not None and maker.op == "concatenate" and maker.params["dimension"] == last:
        for part in maker.operands:
            if column < part.shape[last]:
                return _counted(part, column)
            column -= part.shape[last]
    if index.is_const:
        return _counted_constant(index, column)
    iota = facts_of(index).iota if index.shape[last] == 1 else None
    return iota[0] if iota is not None and iota[1:] == (0, 1) and iota[0] < last else None


def _source(value: Value) -> Value:
    """Where a region's input comes from: from outside, or from the same loop's forward pass, row by row."""
    while value.node is None and value.graph is not None and len(value.graph.parents) == 1:
        region = value.graph
        (node,) = region.parents
        outer = outer_of(node, region).get(value)
        if outer is None:
            outer = _saved(node, value)
        if outer is None:
            return value
        value = outer
    return value


def _saved(loop: Node, value: Value) -> Value | None:
    """What a loop gave in the round that a scanned input of another loop is of."""
    if loop.op != "scan":
        return None
    place = loop.params["num_consts"] + loop.params["num_carry"]
    if value.index < place or (rows := loop.operands[value.index]).node is None:
        return None
    maker = rows.node
    carried = maker.params["num_carry"] if maker.op == "scan" else len(maker.results)
    at = maker.results.index(rows)
    return maker.regions[0].outputs[at] if at >= carried else None


def _counted_constant(index: Value, column: int) -> int | None:
    if math.prod(index.shape) > _LARGEST or (plain := _jax.plain_constant(index.const)) is None:
        return None
    numbers = plain[..., column]
    for dim, size in enumerate(numbers.shape):
        counted = np.arange(size).reshape([size if d == dim else 1 for d in range(numbers.ndim)])
        if size > 1 and np.array_equal(numbers, np.broadcast_to(counted, numbers.shape)):
            return dim
    return None
