"""Which values of a program lie alike because they are one array: a loop's carry, before, in and after it."""

from __future__ import annotations

from collections.abc import Iterable

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import Slot, slots
from lepton_jax.parallel.union_find import UnionFind


class Ties:
    """The values of a graph and its regions in groups; of a group all lie alike.

    An operand of a node with regions and the region inputs that it feeds are one array, and so are what a
    region returns and the node's result, a carry with both, and what the branches of a conditional return.
    An array that a loop cuts along its leading dimension is tied by the others: of values with fewer
    dimensions than their group these are the last ones.

    Attributes:
        groups: the values of each group, in the order of the program.
        number: of each value its group.
        ndim: of each group the most dimensions.
        cut: of each group the dimensions that a loop cuts off.
        graphs: the graph and the regions that layouts go into.
        closed: nodes into whose regions no layout goes: those regions see parts of arrays.
    """

    def __init__(self, graph: Graph) -> None:
        self._sets: UnionFind[Value] = UnionFind()
        self.closed: list[Node] = []
        self._order: dict[Value, None] = {}
        self.graphs = graph.graphs(lambda node: not is_closed(node))
        for each in self.graphs:
            self._collect(each)
        inside = set(self.graphs)
        for each in graph.graphs():
            if each not in inside:
                self._collect(each)
        for each in self.graphs:
            for node in each.holders:
                if is_closed(node):
                    self.closed.append(node)
                else:
                    self._tie(node)
        self._number()

    def _collect(self, graph: Graph) -> None:
        for node in graph:
            self._order.update(dict.fromkeys(node.operands))
            self._order.update(dict.fromkeys(node.results))
        self._order.update(dict.fromkeys((*graph.inputs, *graph.outputs)))

    def _tie(self, node: Node) -> None:
        for slot in slots(node):
            values = list(_values(node, slot))
            for value in values[1:]:
                self._sets.join(values[0], value)

    def _number(self) -> None:
        self.number: dict[Value, int] = {}
        self.groups: list[list[Value]] = []
        found: dict[Value, int] = {}
        for value in self._order:
            root = self._sets.find(value)
            place = found.setdefault(root, len(self.groups))
            if place == len(self.groups):
                self.groups.append([])
            self.groups[place].append(value)
            self.number[value] = place
        self.ndim = [max(value.ndim for value in group) for group in self.groups]
        self.cut = [
            range(ndim - min(value.ndim for value in group))
            for group, ndim in zip(self.groups, self.ndim, strict=True)
        ]


def is_closed(node: Node) -> bool:
    """Whether a node's regions see something else than its operands: parts of arrays, or references."""
    try:
        return any(slot.kind == "opaque" for slot in slots(node))
    except KeyError:
        return True


def _values(node: Node, slot: Slot) -> Iterable[Value]:
    if slot.kind == "predicate":
        return
    if slot.operand is not None:
        yield node.operands[slot.operand]
    for region, place in slot.inputs:
        yield node.regions[region].inputs[place]
    for region, place in slot.outputs:
        yield node.regions[region].outputs[place]
    if slot.result is not None:
        yield node.results[slot.result]
