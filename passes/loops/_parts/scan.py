"""A scan as a pass sees it, and the edits that passes make to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax import lax

from lepton_jax.ir.graph import Graph, Node, RuleChain, Value
from lepton_jax.ir.importer import copy_equations
from lepton_jax.ir.regions import drop_slots, editable, slots
from lepton_jax.passes.loops._parts.piece import Piece, batched
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import Rewrite, traced, write_before

VARIES = 1
"""The bit of `dependence` for what a value takes from scanned inputs."""


def is_plain_scan(node: Node) -> bool:
    """Whether a node is a scan over known shapes, without effects, that passes may edit."""
    if node.op != "scan" or node.effects or not node.alive or node.is_dead:
        return False
    if type(node.params["length"]) is not int or not editable(node):
        return False
    return all(v.is_static for v in (*node.operands, *node.results)) and node.regions[0].is_static


def plain_scans(graph: Graph) -> Iterator[Node]:
    """The scans of a graph and its regions that passes may edit, inner ones first.

    The graph may be edited on the way: what has become of a scan by then is what counts.
    """
    for inner in reversed(graph.graphs()):
        for node in list(inner):
            if is_plain_scan(node):
                yield node


Fed = tuple[list[Value], tuple[bool, ...]]


class Scan:
    """The parts of a scan as they are now; take a new one after an edit.

    Attributes:
        node: the scan.
        body: its region.
        length: how many iterations it has.
        consts: the body's inputs that are the same on every iteration.
        carries: the body's inputs that iterations hand on.
        scanned: the body's inputs that are cut along the leading axis.
        next: the body's outputs that become the carries.
        stacked: the body's outputs that are stacked.
        outer: for constants and scanned inputs of the body, the operand outside.
    """

    def __init__(self, node: Node) -> None:
        consts, carry = node.params["num_consts"], node.params["num_carry"]
        self.node = node
        self.body: Graph = node.regions[0]
        self.length: int = node.params["length"]
        inputs, outputs = self.body.inputs, self.body.outputs
        self.consts = inputs[:consts]
        self.carries = inputs[consts : consts + carry]
        self.scanned = inputs[consts + carry :]
        self.next = outputs[:carry]
        self.stacked = outputs[carry:]
        feeding = dict(zip(inputs, node.operands, strict=True))
        self.init = [feeding[c] for c in self.carries]
        self.outer = {v: feeding[v] for v in (*self.consts, *self.scanned)}

    def fed(self, leaves: Sequence[Value], known: Mapping[Value, Value] | None = None) -> Fed:
        """What to give to a piece of the body for all iterations, and which of it is stacked.

        Args:
            leaves: what the piece takes.
            known: where values are stacked that are neither constants nor scanned.
        """
        stacks = {**self.outer, **(known or {})}
        values = [leaf if leaf.is_const else stacks[leaf] for leaf in leaves]
        fixed = set(self.consts)
        return values, tuple(not leaf.is_const and leaf not in fixed for leaf in leaves)

    def result_of(self, value: Value) -> Value | None:
        """The stacked result that holds a value of the body for all iterations, if there is one."""
        if value in self.scanned:
            return self.outer[value]
        for position, output in enumerate(self.stacked):
            if output is value:
                return self.node.results[len(self.carries) + position]
        return None

    def dependence(self) -> dict[Value, int]:
        """What each value of the body depends on: bit 0 for scanned inputs, bit i + 1 for carry i."""
        found = dict.fromkeys(self.consts, 0) | dict.fromkeys(self.scanned, VARIES)
        found |= {carry: 2 << i for i, carry in enumerate(self.carries)}
        for node in self.body:
            mask = 0
            for v in node.operands:
                if not v.is_const:
                    mask |= found[v]
            for v in node.results:
                found[v] = mask
        return found


def add_carry(node: Node, init: Value, new: Value) -> Value:
    """Hand a value of the body on; returns the body's new input, which holds it in the next iteration."""
    consts, carry = node.params["num_consts"], node.params["num_carry"]
    body = node.regions[0]
    added = body.add_input(new.aval, consts + carry)
    outputs = list(body.outputs)
    body.set_outputs([*outputs[:carry], new, *outputs[carry:]])
    result = Value(new.aval, node, carry)
    node.params = {**node.params, "num_carry": carry + 1}
    node.set_operands([*node.operands[: consts + carry], init, *node.operands[consts + carry :]])
    node.set_results([*node.results[:carry], result, *node.results[carry:]])
    node.raw = None
    return added


def add_scanned(node: Node, outer: Value, inner: Value) -> Value:
    """Let the body read the slices of `outer`; `inner` is a value of the body that is like them."""
    added = node.regions[0].add_input(inner.aval)
    node.set_operands([*node.operands, outer])
    node.raw = None
    return added


def stacked_like(node: Node, value: Value) -> Any:
    """The abstract value of a value of the body, stacked over the iterations."""
    return traced(rewrite(_stack, value, length=node.params["length"]), node).out_avals[0]


def _stack(x: Any, *, length: int) -> Any:
    return lax.broadcast(x, (length,))


def add_stacked(node: Node, inner: Value) -> Value:
    """Stack a value of the body; returns the scan's new result."""
    aval = stacked_like(node, inner)
    body = node.regions[0]
    body.set_outputs([*body.outputs, inner])
    result = Value(aval, node, len(node.results))
    node.set_results([*node.results, result])
    node.raw = None
    return result


def drop_carry(node: Node, position: int) -> None:
    """Give up a carry whose result and input nobody reads any more."""
    _drop(node, "carry", position)


def drop_stacked(node: Node, position: int) -> None:
    """Give up a stacked output whose result nobody reads any more."""
    _drop(node, "stacked", position)


def drop_unread(node: Node) -> None:
    """Give up constants and scanned inputs that the body does not read, unless nothing would be left."""
    inputs = node.regions[0].inputs
    unread = [
        slot
        for slot in slots(node)
        if slot.kind in ("constant", "scanned") and not any(inputs[i].uses for _, i in slot.inputs)
    ]
    if unread:
        drop_slots(node, unread)


def _drop(node: Node, kind: str, position: int) -> None:
    drop_slots(node, [[slot for slot in slots(node) if slot.kind == kind][position]])


def write_batched(
    scan: Scan,
    piece: Piece,
    leaves: Sequence[Value],
    rule: str,
    known: Mapping[Value, Value] | None = None,
) -> list[Value]:
    """Run a piece for all iterations, before the scan, or after it where it reads its results.

    Args:
        leaves: the values of the body that the piece takes.
        known: where values of the body that are neither constants nor scanned are stacked.
    """
    values, mapped = scan.fed(leaves, known)
    made = rewrite(batched, *values, piece=piece, mapped=mapped, length=scan.length)
    return write_after(made, scan.node, rule) if known else write_before(made, scan.node, rule)


def write_after(made: Rewrite, node: Node, rule: str) -> list[Value]:
    """Write a traced function right after a node; returns its results."""
    graph, after = node.graph, node.next
    assert graph is not None and after is not None
    outputs = copy_equations(traced(made, node), made.values, graph, after, {})
    fresh = after.prev
    while fresh is not node and fresh is not None:
        fresh.source = node.source
        fresh.rule = RuleChain(rule, node.rule)
        fresh = fresh.prev
    return outputs


def replace_stacked(node: Node, value: Value, outer: Value) -> None:
    """Read `outer` instead of every result that stacks `value`, and stack it no longer."""
    while True:
        scan = Scan(node)
        position = next((i for i, v in enumerate(scan.stacked) if v is value), None)
        if position is None:
            return
        node.results[len(scan.carries) + position].replace_uses(outer)
        drop_stacked(node, position)


def read_outside(node: Node, value: Value, outer: Value) -> None:
    """Let the loop scan over `outer` in place of computing `value`; outputs that stack it are it."""
    replace_stacked(node, value, outer)
    if value.uses:
        value.replace_uses(add_scanned(node, outer, value))
