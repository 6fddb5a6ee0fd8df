"""Scans of whose stacked results only the last row is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import jax
from jax import lax

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import copy_node
from lepton_jax.ir.regions import drop_slots, editable, slots
from lepton_jax.passes.simplify._movement.common import is_plain
from lepton_jax.passes.simplify._movement.slices import strides_of
from lepton_jax.rewrite import PassContext, erase_dead, rewrite
from lepton_jax.rewrite.replacement import write, write_before

_MOST_READERS: Final = 16


def keep_last_rows(graph: Graph, ctx: PassContext) -> None:
    """Compute the last row of a stacked result behind its scan, or carry it, where no other is read.

    scan(step, h, xs)[1][-1] → the row that the last step makes: behind the loop where it depends
    on what the loop leaves, carried round the loop otherwise. Exact.
    """
    for node in list(graph):
        if node.op != "scan" or not editable(node) or type(node.params["length"]) is not int:
            continue
        for result in node.results[node.params["num_carry"] :]:
            readers = result.users()
            if _reads_last(result, readers, node) and ctx.fire("last-row-of-scan", node):
                _keep_last(node, result, readers)


def _reads_last(result: Value, readers: Sequence[Node], scan: Node) -> bool:
    """Whether a row is read, and only the one that the last step writes."""
    length = scan.params["length"]
    if length < 2 or not readers or len(readers) > _MOST_READERS:
        return False
    row = 0 if scan.params["reverse"] else length - 1
    for reader in readers:
        if reader.op != "slice" or strides_of(reader)[0] != 1:
            return False
        if (reader.params["start_indices"][0], reader.params["limit_indices"][0]) != (row, row + 1):
            return False
    return result.is_static and is_plain(result)


def _keep_last(scan: Node, result: Value, readers: Sequence[Node]) -> None:
    graph = scan.graph
    assert graph is not None
    row = _behind(scan, result)
    if row is None:
        row = _carried(scan, result)
    for reader in readers:
        bounds = (tuple(reader.params["start_indices"][1:]), tuple(reader.params["limit_indices"][1:]))
        made = rewrite(row_part, row, bounds=bounds, strides=strides_of(reader)[1:])
        write(made, reader, "last-row-of-scan")
        erase_dead(reader)
    position = result.index
    if scan.graph is None:
        return  # nothing else of it was read
    if position < len(scan.results) and scan.results[position] is result and not result.uses:
        drop_slots(scan, [s for s in slots(scan) if s.kind == "stacked" and s.result == position])


def row_part(
    row: jax.Array, *, bounds: tuple[tuple[int, ...], tuple[int, ...]], strides: tuple[int, ...]
) -> jax.Array:
    """A part of a row, as an array of one row."""
    start, limit = bounds
    whole = not any(start) and limit == row.shape and all(s == 1 for s in strides)
    return lax.expand_dims(row if whole else lax.slice(row, start, limit, strides), (0,))


def _behind(scan: Node, result: Value) -> Value | None:
    """The last row computed behind the loop, from what the loop leaves; None where more is needed."""
    region, carries, consts = scan.regions[0], scan.params["num_carry"], scan.params["num_consts"]
    output = region.outputs[result.index]
    left = {value: scan.results[i] for i, value in reversed(list(enumerate(region.outputs[:carries])))}
    cone: list[Node] = []
    stack, seen = [output], set(left)
    while stack:
        value = stack.pop()
        if value in seen or value.is_const:
            continue
        seen.add(value)
        if value.node is None:
            if consts <= value.index < consts + carries:
                return None  # what the last step was given is gone
            continue
        if value.node.effects or value.node.regions or not all(v.is_static for v in value.node.results):
            return None
        if value.node not in cone:
            cone.append(value.node)
            stack += value.node.operands
    return _computed(scan, output, left, cone)


def _computed(scan: Node, output: Value, left: dict[Value, Value], cone: Sequence[Node]) -> Value:
    graph, region = scan.graph, scan.regions[0]
    assert graph is not None and scan.next is not None
    consts, carries = scan.params["num_consts"], scan.params["num_carry"]
    after = scan.next
    known = dict(left)
    for i, value in enumerate(region.inputs):
        if i < consts:
            known[value] = scan.operands[i]
        elif i >= consts + carries and any(n in cone for n, _ in value.uses) | (value is output):
            known[value] = _last_row(scan, scan.operands[i], after)
    inside = set(cone)
    for node in [n for n in region if n in inside]:
        copy = copy_node(node, [v if v.is_const else known[v] for v in node.operands])
        graph.insert(copy, after)
        known.update(zip(node.results, copy.results, strict=True))
    return output if output.is_const else known[output]


def _last_row(scan: Node, xs: Value, before: Node) -> Value:
    """The row of `xs` that the last step reads, taken before a node behind the loop."""
    row = 0 if scan.params["reverse"] else scan.params["length"] - 1
    return write_before(rewrite(row_of, xs, row=row), before, "last-row-of-scan")[0]


def row_of(xs: jax.Array, *, row: int) -> jax.Array:
    """One row."""
    return lax.index_in_dim(xs, row, keepdims=False)


def zeros(*, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """What a carried row holds before the first step."""
    return lax.full(shape, 0, dtype)


def _carried(scan: Node, result: Value) -> Value:
    """The last row, as a carry that each step writes anew and none reads."""
    graph, region = scan.graph, scan.regions[0]
    assert graph is not None
    consts, carries = scan.params["num_consts"], scan.params["num_carry"]
    output = region.outputs[result.index]
    aval = output.aval
    made = rewrite(zeros, shape=output.shape, dtype=str(output.dtype))
    (start,) = write_before(made, scan, "last-row-of-scan")
    at = consts + carries
    region.add_input(aval, at)
    region.set_outputs([*region.outputs[:carries], output, *region.outputs[carries:]])
    scan.set_operands([*scan.operands[:at], start, *scan.operands[at:]])
    row = Value(aval, scan)
    scan.set_results([*scan.results[:carries], row, *scan.results[carries:]])
    scan.params = {**scan.params, "num_carry": carries + 1}
    scan.raw = None
    return row
