"""The program as a graph: values, nodes, and graphs that hold regions.

A `Graph` is a list of `Node`s in program order, in static single assignment: every
`Value` is an input of the graph, a constant, or a result of exactly one node. A node
with regions (scan, cond, ...) holds further graphs; these see only their own inputs.
Passes edit graphs in place through the methods here, which keep the use lists right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from lepton_jax.ir.node import NO_CONSTANT, RETURN, Node, RuleChain, Value, read_otherwise

__all__ = ["NO_CONSTANT", "RETURN", "Graph", "Node", "RuleChain", "Value", "constant"]

_CLOCK: Final = itertools.count(1)


class Graph:
    """A function: inputs, nodes in program order, outputs.

    Attributes:
        name: the function's name, for printing.
        inputs: its arguments, flat.
        version: grows with each change; no two changes of any graphs give the same.
        jaxpr: the jaxpr it was imported from, or None.
        parents: the nodes whose region it is.
        released: whether nodes ran it and none does any more.
        holders: its nodes that have regions.
        replaced: its values in whose place others are read, with these, since `facts.renew` last looked.
    """

    __slots__ = (
        "_ret",
        "_top",
        "compiled",
        "holders",
        "imported_at",
        "inputs",
        "jaxpr",
        "key",
        "name",
        "parents",
        "released",
        "replaced",
        "version",
    )

    def __init__(self, name: str, avals: Sequence[Any], jaxpr: Any = None) -> None:
        self.name = name
        self.inputs = [self._input(aval, i) for i, aval in enumerate(avals)]
        self.version = 0
        self.imported_at = -1
        self.key: tuple[int, Any] | None = None
        self.compiled: tuple[int, Callable[..., list[Any]]] | None = None
        self.jaxpr = jaxpr
        self.parents: list[Node] = []
        self.released = False
        self.holders: dict[Node, None] = {}
        self.replaced: dict[Value, Value] = {}
        # A ring with two sentinels: `_top` before the first node, `_ret` reads the outputs.
        self._top = Node("", None, (), (), {})
        self._ret = Node(RETURN, None, (), (), {})
        self._top.next, self._ret.prev = self._ret, self._top
        self._top.graph = self._ret.graph = self

    # Reading

    @property
    def outputs(self) -> list[Value]:
        """The values it returns (a copy: use `set_outputs` to change them)."""
        return list(self._ret.operands)

    @property
    def ret(self) -> Node:
        """The node that reads the outputs; `append` inserts before it."""
        return self._ret

    def __iter__(self) -> Iterator[Node]:
        """Its nodes in program order. The node at hand may be erased meanwhile."""
        node = self._top.next
        while node is not self._ret:
            assert node is not None
            if node.graph is not None:
                yield node
            node = node.next

    def __reversed__(self) -> Iterator[Node]:
        """Its nodes, last first. The node at hand may be erased meanwhile."""
        node = self._ret.prev
        while node is not self._top:
            assert node is not None
            if node.graph is not None:
                yield node
            node = node.prev

    def walk(self) -> Iterator[Node]:
        """Every node, those of regions after the node that holds them; shared regions once."""
        seen: set[Graph] = {self}
        stack: list[Iterator[Node]] = [iter(self)]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                continue
            yield node
            for region in reversed(node.regions):
                if region not in seen:
                    seen.add(region)
                    stack.append(iter(region))

    def graphs(self, enter: Callable[[Node], bool] = lambda node: True) -> list[Graph]:
        """This graph and the regions below it, each once, parents before children.

        Args:
            enter: whether to look into the regions of a node (default: all).
        """
        found = {self: None}
        queue = [self]
        for graph in queue:
            for node in graph.holders:
                for region in node.regions if enter(node) else ():
                    if region not in found:
                        found[region] = None
                        queue.append(region)
        return list(found)

    def nodes(self) -> list[Node]:
        """The nodes of `walk`, as they are now."""
        found: list[Node] = []
        seen: set[Graph] = {self}
        waiting = [self._top.next]
        while waiting:
            node = waiting.pop()
            while node is not None and node.graph is not None and node.op != RETURN:
                found.append(node)
                if node.regions:
                    waiting.append(node.next)
                    fresh = [region for region in dict.fromkeys(node.regions) if region not in seen]
                    seen.update(fresh)
                    waiting += [region._top.next for region in reversed(fresh)]
                    break
                node = node.next
        return found

    def num_nodes(self) -> int:
        """How many nodes it has, regions included (shared ones once)."""
        return len(self.nodes())

    def is_pristine(self) -> bool:
        """Whether no pass has changed it or a region in it since it was imported."""
        return all(graph.version == graph.imported_at for graph in self.graphs())

    def total_version(self) -> int:
        """A number that grows when this graph or a region below it changes."""
        return max(graph.version for graph in self.graphs())

    def forget_facts(self) -> None:
        """Drop the facts of all values in it: its inputs get another source."""
        if all(value.facts is None for value in self.inputs):
            return
        now = next(_CLOCK)
        for graph in self.graphs():
            for value in graph.inputs:
                value.facts = None
            for node in graph:
                for value in node.results:
                    value.facts = None
                node.changed = now

    @property
    def is_static(self) -> bool:
        """Whether every shape in it is known (no symbolic dimensions)."""
        values = [*self.inputs, *(value for node in self for value in node.results)]
        return all(value.is_static for value in values)

    # Editing

    def touch(self) -> None:
        """Note a change."""
        self.version = next(_CLOCK)

    def _input(self, aval: Any, index: int = 0) -> Value:
        value = Value(aval, None, index)
        value.graph = self
        return value

    def add_input(self, aval: Any, position: int | None = None) -> Value:
        """A new input at `position` (default: the last)."""
        value = self._input(aval)
        self.inputs.insert(len(self.inputs) if position is None else position, value)
        self._number_inputs()
        return value

    def remove_inputs(self, positions: Iterable[int]) -> None:
        """Drop inputs that nobody reads."""
        gone = set(positions)
        for position in gone:
            if self.inputs[position].uses:
                raise ValueError(f"input {position} of {self.name} is still read")
        self.inputs = [value for i, value in enumerate(self.inputs) if i not in gone]
        self._number_inputs()

    def _number_inputs(self) -> None:
        for index, value in enumerate(self.inputs):
            value.index = index
        self.touch()

    def set_outputs(self, values: Sequence[Value]) -> None:
        """Return `values` from now on."""
        self._ret.set_operands(values)

    def insert(self, node: Node, before: Node) -> Node:
        """Put a new node right before `before` (a node of this graph, or `ret`)."""
        after = before.prev
        assert after is not None
        node.prev, node.next, node.graph = after, before, self
        after.next = before.prev = node
        if node.regions:
            self.holders[node] = None
        node.touch()
        return node

    def append(self, node: Node) -> Node:
        """Put a new node last."""
        return self.insert(node, self._ret)

    def move(self, node: Node, before: Node) -> None:
        """Take a node out of its place and put it before `before`."""
        self._unlink(node)
        self.insert(node, before)

    def erase(self, node: Node) -> None:
        """Remove a node whose results nobody reads."""
        if any(value.uses for value in node.results):
            raise ValueError(f"{node.op} cannot be erased: its results are read")
        for position, operand in enumerate(node.operands):
            operand.uses.pop((node, position), None)
        for region in node.regions if not self.released else ():
            region.lose_parent(node)
        self._unlink(node)
        node.graph = None
        read_otherwise(*node.operands)

    def gain_parent(self, node: Node) -> None:
        """Let a node run this graph; what its own nodes run counts them again if nobody ran it."""
        if self.parents or self.released:
            self.forget_facts()
        if self.released:
            self.released = False
            for holder in self.holders:
                for region in holder.regions:
                    region.gain_parent(holder)
        self.parents.append(node)

    def lose_parent(self, node: Node) -> None:
        """Let a node not run this graph any more; what nobody runs does not count among who runs others."""
        self.parents.remove(node)
        if self.parents:
            return
        self.released = True
        for holder in self.holders:
            for region in holder.regions:
                region.lose_parent(holder)

    def _unlink(self, node: Node) -> None:
        """Close the ring over a node; its own links stay, so that iterators find the way on."""
        before, after = node.prev, node.next
        assert before is not None and after is not None
        before.next, after.prev = after, before
        self.holders.pop(node, None)
        self.touch()

    def to_text(self, *, scopes: bool = False) -> str:
        """The graph in text form; see `printer.to_text`."""
        from lepton_jax.ir.printer import to_text

        return to_text(self, scopes=scopes)

    def __repr__(self) -> str:
        return f"Graph({self.name}, {len(self.inputs)} inputs)"


def constant(array: Any, aval: Any, literal: bool = False) -> Value:
    """A constant value.

    It belongs to no node; a graph holds it by reading it.
    """
    return Value(aval, None, 0, array, literal)
