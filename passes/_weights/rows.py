"""Reads of whole rows of a table, whichever way they are written: as gathers by one index."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import Sources
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import slots
from lepton_jax.rewrite import PassContext, erase_dead, rewrite
from lepton_jax.rewrite.replacement import Rewrite, write

_RULE: Final = "rows-of-table"

_ARITHMETIC: Final = frozenset(
    {
        *("add", "sub", "mul", "rem", "lt", "select_n", "clamp", "min", "max", "convert_element_type"),
        *("broadcast_in_dim", "reshape", "squeeze", "slice", "concatenate"),
    }
)
"""What indices are computed by: wrapped round where they are negative, put together, cut apart."""


def take_rows(graph: Graph, ctx: PassContext, known: Sources) -> None:
    """Write reads of rows of weights as gathers by the row alone.

    `vmap` of `table[i]` gathers by the row and by a zero for each other axis, which is taken whole. A single
    `table[i]` is a `dynamic_slice`; those by the counter of a loop stay, since they take a layer's part of
    what is stacked for all layers.
    """
    for node in list(graph.walk()):
        if node.op not in ("gather", "dynamic_slice") or not known.get(node.operands[0]):
            continue
        if all(v in known or v.is_const for v in node.operands):
            continue
        made = _by_row(node) if node.op == "gather" else _row(node)
        if made is not None and ctx.fire(_RULE, node):
            write(made, node, _RULE)
            erase_dead(node)


def _by_row(node: Node) -> Rewrite | None:
    """A gather without indices of axes that are taken whole, where those are clamped to zero."""
    numbers, sizes, mode = (node.params[k] for k in ("dimension_numbers", "slice_sizes", "mode"))
    if mode not in (lax.GatherScatterMode.CLIP, lax.GatherScatterMode.PROMISE_IN_BOUNDS):
        return None
    table, indices = node.operands
    partial = [i for i, axis in enumerate(numbers.start_index_map) if sizes[axis] != table.shape[axis]]
    if len(partial) != 1 or len(numbers.start_index_map) == 1:
        return None
    options = {k: node.params[k] for k in ("unique_indices", "indices_are_sorted", "mode", "fill_value")}
    return rewrite(
        _gathered,
        table,
        indices,
        place=partial[0],
        numbers=numbers._replace(start_index_map=(numbers.start_index_map[partial[0]],)),
        sizes=tuple(sizes),
        options=tuple(options.items()),
    )


def _gathered(
    table: jax.Array,
    indices: jax.Array,
    *,
    place: int,
    numbers: lax.GatherDimensionNumbers,
    sizes: tuple[int, ...],
    options: tuple[tuple[str, Any], ...],
) -> jax.Array:
    return lax.gather(table, indices[..., place : place + 1], numbers, sizes, **dict(options))


def _row(node: Node) -> Rewrite | None:
    """A slice of one row of a matrix, as a gather."""
    table, *starts = node.operands
    sizes = tuple(node.params["slice_sizes"])
    whole = [axis for axis, size in enumerate(sizes) if size == table.shape[axis]]
    if table.ndim != 2 or len(whole) != 1 or sizes[1 - whole[0]] != 1:
        return None
    start = starts[1 - whole[0]]
    if start.is_const or _is_counter(start):
        return None
    return rewrite(_sliced, table, start, axis=1 - whole[0], sizes=sizes)


def _sliced(table: jax.Array, start: jax.Array, *, axis: int, sizes: tuple[int, ...]) -> jax.Array:
    numbers = lax.GatherDimensionNumbers((0, 1), (), (axis,))
    index = jnp.reshape(start, (1,))
    return lax.gather(table, index, numbers, sizes, mode=lax.GatherScatterMode.CLIP)


def _is_counter(index: Value) -> bool:
    """Whether an index goes by how often a loop has run, and by nothing else."""
    made_of = _origins(index)
    while made_of:
        value = made_of.pop()
        node = value.node
        if node is not None:
            if node.op != "iota":
                return False
            continue
        if value.graph is None or not value.graph.parents:
            return False
        outer = value.graph.parents[0]
        place = (outer.regions.index(value.graph), value.index)
        slot = next(slot for slot in slots(outer) if place in slot.inputs)
        if slot.operand is None:
            return False
        if slot.kind == "carry":
            (step,) = (outer.regions[r].outputs[i] for r, i in slot.outputs)
            if _origins(step) != {value}:
                return False
        else:
            made_of |= _origins(outer.operands[slot.operand])
    return True


def _origins(value: Value) -> set[Value]:
    """What a number is computed from, other than constants, by the arithmetic of indices."""
    found: set[Value] = set()
    work, seen = [value], {value}
    while work:
        each = work.pop()
        if each.is_const:
            continue
        if each.node is None or each.node.op not in _ARITHMETIC:
            found.add(each)
            continue
        fresh = [v for v in each.node.operands if v not in seen]
        seen.update(fresh)
        work += fresh
    return found
