"""Attention in a loop over layers whose gradient is in another loop.

The loop of the forward half stacks what the backward half needs: exponentials, weights, masks of every
layer, each [queries × keys]. All of it follows from the queries, keys and values of the layer, so the
backward loop can have it from these, with the result of attention and two numbers for each query.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.graph import RETURN, Graph, Node, Value
from lepton_jax.ir.inline import copy_graph, copy_node
from lepton_jax.ir.regions import add_constant, inside
from lepton_jax.passes.fuse._attention.axes import ELEMENTWISE, MOVES
from lepton_jax.passes.fuse._attention.inward import outer_value
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.loops._parts.scan import Scan, add_scanned, add_stacked, drop_stacked, is_plain_scan

_DOWN: Final = ELEMENTWISE | MOVES | {"reduce_sum", "reduce_max"}
_VIEWS: Final = MOVES | {"convert_element_type"}


@dataclass(frozen=True, eq=False)
class Crossing:
    """What a loop's body keeps of attention for other loops.

    Attributes:
        loop: the loop.
        found: the attention in its body.
        nodes: the operations that are cheap to repeat from the attention's operands and results.
        kept: what they make that the loop stacks.
        large: those of `kept` that are [queries × keys].
        readers: the loops that read it, one layer at a time.
    """

    loop: Node
    found: Found
    nodes: frozenset[Node]
    kept: tuple[Value, ...]
    large: frozenset[Value]
    readers: tuple[Node, ...]

    def trial(self, reader: Node) -> Node:
        """The attention's product in a copy of the body of a loop that reads what was kept."""
        body = copy_graph(reader.regions[0])
        return _Copy(self, Scan(reader), body, lambda value: body.add_input(value.aval)).write()

    def move(self, reader: Node) -> Node:
        """Compute in the body of a loop what was kept for it; the attention's product there."""
        return _Copy(self, Scan(reader), reader.regions[0], lambda v: handed(self.loop, v, reader)).write()

    def keep(self, value: Value) -> None:
        """Stack a value of the loop's body for other loops."""
        if Scan(self.loop).result_of(value) is None:
            add_stacked(self.loop, value)

    def release(self) -> None:
        """Keep no longer what no loop reads."""
        for position in reversed(range(len(Scan(self.loop).stacked))):
            scan = Scan(self.loop)
            unread = not self.loop.results[len(scan.carries) + position].uses
            if scan.stacked[position] in self.kept and unread:
                drop_stacked(self.loop, position)


def crossing_of(found: Found) -> Crossing | str | None:
    """What a loop keeps of attention, None where there is no such thing, or why it has to stay."""
    graph = found.dot.graph
    if graph is None or len(graph.parents) != 1 or not is_plain_scan(graph.parents[0]):
        return None
    (loop,) = graph.parents
    scan = Scan(loop)
    nodes = _nodes(found)
    kept = tuple(dict.fromkeys(v for v in scan.stacked if v.node in nodes))
    large = frozenset(v for v in kept if math.prod(v.shape) >= math.prod(found.size))
    if not large:
        return None
    if large & set(scan.next):
        return "the weights are handed on by a loop"
    readers: dict[Node, None] = {}
    for value in large:
        for reader in _readers(scan, value):
            if reader is None:
                return "a loop keeps the weights for something else than its gradient"
            readers[reader] = None
    return Crossing(loop, found, frozenset(nodes), kept, large, tuple(readers)) if readers else None


def _nodes(found: Found) -> set[Node]:
    """What makes the scores, what is made of them, and views of the result."""
    made = {node for node, _, _ in (*found.builder.steps, *found.late.steps)}
    stack = [v for v in (*found.builder.dependent(), found.exp.result)]
    while stack:
        for user in stack.pop().users():
            if user is found.dot or user in made or user.op not in _DOWN or user.op == RETURN:
                continue
            made.add(user)
            stack += user.results
    stack = [found.dot.result]
    while stack:
        views = [user for user in stack.pop().users() if user.op in _VIEWS]
        made.update(views)
        stack += [view.result for view in views]
    return made | {found.exp}


def _results(scan: Scan, value: Value) -> Iterator[Value]:
    for position, output in enumerate(scan.stacked):
        if output is value:
            yield scan.node.results[len(scan.carries) + position]


def _readers(scan: Scan, value: Value) -> Iterator[Node | None]:
    """The loops that read what is stacked of a value, layer by layer; None for other readers."""
    for result in _results(scan, value):
        for user, position in result.uses:
            plain = user.graph is scan.node.graph and is_plain_scan(user) and user is not scan.node
            if not plain or user.params["length"] != scan.length:
                yield None
            else:
                first = user.params["num_consts"] + user.params["num_carry"]
                yield user if position >= first else None


class _Copy:
    """Writes what was kept into the body of a loop that reads it."""

    def __init__(self, crossing: Crossing, reader: Scan, body: Graph, leaf: Callable[[Value], Value]) -> None:
        self.crossing, self.body, self.leaf = crossing, body, leaf
        self.made: dict[Value, Value] = {}
        self.first = next(iter(body))
        kept = {result: value for value in crossing.kept for result in _results(Scan(crossing.loop), value)}
        pairs = list(zip(body.inputs, reader.node.operands, strict=True))[-len(reader.scanned) :]
        self.old = [(inner, kept[outer]) for inner, outer in pairs if outer in kept]

    def write(self) -> Node:
        """The product; what was kept is read from here on."""
        dot = self.value(self.crossing.found.dot.result).node
        assert dot is not None
        for old, value in self.old:
            old.replace_uses(self.value(value))
        return dot

    def _repeated(self, value: Value) -> Value | None:
        """A repeated constant from outside of the loop, made in this body; None where a value is none."""
        outer = outer_value(value)
        node = None if outer is None else outer.node
        if node is None or node.op != "broadcast_in_dim" or not node.operands[0].is_const:
            return None
        return self.body.insert(copy_node(node, node.operands), self.first).result

    def value(self, value: Value) -> Value:
        """A value of the other body, in this one."""
        stack = [value]
        while stack:
            current = stack[-1]
            node = current.node
            if current.is_const or current in self.made:
                stack.pop()
            elif node is None or (node not in self.crossing.nodes and node is not self.crossing.found.dot):
                self.made[stack.pop()] = self._repeated(current) or self.leaf(current)
            else:
                missing = [v for v in node.operands if not v.is_const and v not in self.made]
                stack += missing
                if not missing:
                    operands = [v if v.is_const else self.made[v] for v in node.operands]
                    copy = self.body.insert(copy_node(node, operands), self.first)
                    self.made[stack.pop()] = copy.result
        return value if value.is_const else self.made[value]


def handed(loop: Node, value: Value, reader: Node) -> Value:
    """A value of a loop's body in the body of another loop over the same layers."""
    scan = Scan(loop)
    if value in scan.consts:
        outer = scan.outer[value]
        known = next(iter(inside(reader, outer)), None)
        return known if known is not None else add_constant(reader, 0, outer)
    stacked = scan.result_of(value)
    if stacked is None:
        stacked = add_stacked(loop, value)
    other = Scan(reader)
    for inner in other.scanned:
        if other.outer[inner] is stacked:
            return inner
    return add_scanned(reader, stacked, value)
