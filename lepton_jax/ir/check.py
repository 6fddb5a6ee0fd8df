"""Whether a graph is well formed: `check`. For tests and for the manager's verification."""

from __future__ import annotations

from typing import Any

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.printer import aval_text
from lepton_jax.ir.regions import Slot, slots


class GraphError(Exception):
    """A graph is damaged; the message names the graph, the node, and the fault."""


def check(graph: Graph) -> None:
    """Check a graph and all regions below it.

    Every value is defined before it is read, in the graph that reads it; use lists and
    operands say the same; results, inputs and regions know whose they are; and what
    flows into and out of regions has the shape and dtype that it has outside.

    Raises:
        GraphError: the graph is damaged.
    """
    for each in graph.graphs():
        _Check(each).run()


class _Check:
    """Checks one graph, without the nodes of its regions."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: set[Node] = set()
        self.defined: set[Value] = set()

    def run(self) -> None:
        for index, value in enumerate(self.graph.inputs):
            self.input(index, value)
        before: Node | None = None
        for node in self.graph:
            self.links(node, before)
            self.operands(node)
            self.results(node)
            self.regions(node)
            self.nodes.add(node)
            before = node
        self.operands(self.graph.ret)
        self.nodes.add(self.graph.ret)
        for value in self.defined:
            self.uses(value)
        for parent in self.graph.parents:
            if not any(region is self.graph for region in parent.regions):
                raise self.error(parent, "is listed as a parent and does not have the region")

    def error(self, node: Node | None, fault: str) -> GraphError:
        where = f"graph {self.graph.name}"
        if node is self.graph.ret:
            where += ", outputs"
        elif node is not None:
            where += f", node {node.op}{_place(self.graph, node)}"
        return GraphError(f"{where}: {fault}")

    def input(self, index: int, value: Value) -> None:
        if value in self.defined:
            raise self.error(None, f"input {index} occurs twice")
        if value.index != index:
            raise self.error(None, f"input {index} says that it is number {value.index}")
        if value.node is not None or value.is_const:
            raise self.error(None, f"input {index} is also a result or a constant")
        if value.graph is not self.graph:
            raise self.error(None, f"input {index} belongs to another graph")
        self.defined.add(value)

    def links(self, node: Node, before: Node | None) -> None:
        if node.graph is not self.graph:
            raise self.error(node, "says that it is in another graph")
        if before is not None and node.prev is not before:
            raise self.error(node, "is not linked back to the node before it")
        if node in self.nodes:
            raise self.error(node, "occurs twice")

    def operands(self, node: Node) -> None:
        for position, value in enumerate(node.operands):
            if (node, position) not in value.uses:
                raise self.error(node, f"operand {position} does not list this use")
            if value.is_const:
                if value.node is not None or value.graph is not None:
                    raise self.error(node, f"operand {position} is a constant and also a result or an input")
            elif value not in self.defined:
                raise self.error(node, f"operand {position} {_origin(value, self.graph)}")

    def results(self, node: Node) -> None:
        for index, value in enumerate(node.results):
            if value in self.defined:
                raise self.error(node, f"result {index} is defined twice")
            if value.node is not node:
                raise self.error(node, f"result {index} says that another node makes it")
            if value.index != index:
                raise self.error(node, f"result {index} says that it is number {value.index}")
            if value.is_const or value.graph is not None:
                raise self.error(node, f"result {index} is also a constant or an input")
            self.defined.add(value)

    def uses(self, value: Value) -> None:
        for user, position in value.uses:
            if user not in self.nodes:
                raise self.error(
                    value.node, f"a result or input is used by {user.op}, which is not in the graph"
                )
            if position >= len(user.operands) or user.operands[position] is not value:
                raise self.error(user, f"operand {position} is not the value that lists this use")

    def regions(self, node: Node) -> None:
        for region in node.regions:
            listed = sum(1 for parent in region.parents if parent is node)
            if listed != sum(1 for other in node.regions if other is region):
                raise self.error(node, f"region {region.name} lists it {listed} times as a parent")
        if not node.regions:
            return
        try:
            found = slots(node)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self.error(node, f"its parameters do not describe its slots: {error!r}") from error
        self.coverage(node, found)
        for slot in found:
            if slot.kind != "opaque":
                self.slot(node, slot)

    def coverage(self, node: Node, found: list[Slot]) -> None:
        """Every operand, result, region input and region output is in exactly one slot."""
        for what, have, want in (
            ("operands", [s.operand for s in found if s.operand is not None], range(len(node.operands))),
            ("results", [s.result for s in found if s.result is not None], range(len(node.results))),
        ):
            if sorted(have) != list(want):
                raise self.error(node, f"it has {len(want)} {what}, its parameters speak of {len(have)}")
        inputs = sorted(place for slot in found for place in slot.inputs)
        outputs = sorted(place for slot in found for place in slot.outputs)
        for what, places, counts in (
            ("inputs", inputs, [len(region.inputs) for region in node.regions]),
            ("outputs", outputs, [len(region.outputs) for region in node.regions]),
        ):
            if places != [(r, i) for r, count in enumerate(counts) for i in range(count)]:
                raise self.error(node, f"its regions have {counts} {what}, its slots feed {len(places)}")

    def slot(self, node: Node, slot: Slot) -> None:
        outside: list[tuple[str, Any]] = []
        if slot.operand is not None:
            outside.append((f"operand {slot.operand}", node.operands[slot.operand].aval))
        if slot.result is not None:
            outside.append((f"result {slot.result}", node.results[slot.result].aval))
        inside = [(f"input {i} of region {r}", node.regions[r].inputs[i].aval) for r, i in slot.inputs]
        inside += [(f"output {i} of region {r}", node.regions[r].outputs[i].aval) for r, i in slot.outputs]
        if slot.kind == "predicate":
            return
        cut = slot.kind in ("scanned", "stacked")
        for there, whole in outside:
            for here, part in inside:
                if not _agree(whole, part, node.params.get("length") if cut else None, cut):
                    raise self.error(node, f"{there} is {aval_text(whole)} and {here} is {aval_text(part)}")


def _agree(outside: Any, inside: Any, length: Any, cut: bool) -> bool:
    """Whether two abstract values have one dtype and shape, the outer one with a leading axis if cut."""
    if not (_jax.is_array_aval(outside) and _jax.is_array_aval(inside)):
        return type(outside) is type(inside)
    if outside.dtype != inside.dtype:
        return False
    shape = (length, *inside.shape) if cut else tuple(inside.shape)
    return tuple(outside.shape) == shape


def _origin(value: Value, graph: Graph) -> str:
    """Why a value that was not defined before is wrong."""
    if value.node is None:
        return "is an input of another graph" if value.graph is not graph else "is an input that was removed"
    if value.node.graph is None:
        return f"is a result of {value.node.op}, which was erased"
    if value.node.graph is not graph:
        return f"is a result of {value.node.op}, which is in graph {value.node.graph.name}"
    return f"is a result of {value.node.op}, which comes later"


def _place(graph: Graph, node: Node) -> str:
    number = next((i for i, other in enumerate(graph) if other is node), None)
    scope = f" ({node.scope})" if node.scope else ""
    return scope if number is None else f" number {number}{scope}"
