"""What a pipeline is cut between: the operations of a program in order, loops over layers layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.binding import may_run_once
from lepton_jax.ir.cost import Rates, bytes_of, node_cost, seconds
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import trip_count

ROWWISE: Final = frozenset(
    {"convert_element_type", "copy", "copy_p", "stop_gradient", "reduce_precision", "name", "neg"}
)
"""Operations of one operand that do with each row what they do with the array, whatever its shape."""

_PRODUCTS: Final = frozenset({"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"})


@dataclass(frozen=True)
class Unit:
    """A piece of work that is not cut.

    Attributes:
        node: an operation of the program that depends on parameters and on the batch.
        layer: of a loop over layers, which; None for operations that run whole.
        seconds: what it takes, predicted.
        held: bytes of what it computes, all of which its backward work may read.
        parameters: bytes of the parameters that it is the first to read.
        is_layer: whether it has products.
    """

    node: Node
    layer: int | None
    seconds: float
    held: int
    parameters: int
    is_layer: bool

    def __str__(self) -> str:
        where = f" in {self.node.scope}" if self.node.scope else ""
        return self.node.op + where + ("" if self.layer is None else f", layer {self.layer}")


class Trunk:
    """A program as a line of units, and what is beside it.

    What depends on parameters alone, or on the batch alone, is not in the line: each stage that reads it
    computes it.

    Attributes:
        graph: the program, calls inlined; it has one output.
        params: the positions of the parameters among its inputs.
        needed: the operations that its output depends on.
        units: the line.
        unit_of: for each node of the line the positions of its first and last unit.
    """

    def __init__(self, graph: Graph, params: Collection[int], rates: Rates) -> None:
        self.graph = graph
        self.params = frozenset(params)
        self.needed = _needed(graph)
        self.sources = _sources(graph, self.params)
        self.line = [node for node in graph if node in self.needed and self.in_line(node)]
        self.units: list[Unit] = []
        self.unit_of: dict[Node, tuple[int, int]] = {}
        read: set[Node | int] = set()
        for node in self.line:
            first = len(self.units)
            self.units += self._units(node, rates, read)
            self.unit_of[node] = (first, len(self.units) - 1)

    def in_line(self, node: Node) -> bool:
        """Whether a node depends on parameters and on the batch, or may not be run twice."""
        params, batch = self.sources[node.results[0]] if node.results else (True, True)
        return (params and batch) or not may_run_once(node)

    def is_cut(self, node: Node) -> bool:
        """Whether a node is a loop over layers, of which a stage may have some."""
        return self.unit_of[node][0] < self.unit_of[node][1]

    def _units(self, node: Node, rates: Rates, read: set[Node | int]) -> Iterator[Unit]:
        beside, parameters = self._beside(node, rates, read)
        cost = node_cost(node)
        took = seconds(cost, rates)
        held = held_bytes(node)
        if not self._over_layers(node):
            yield Unit(node, None, took + beside, held, parameters, has_products(node))
            return
        layers = trip_count(node)
        for layer in range(layers):
            yield Unit(
                node,
                layer,
                (took + beside) / layers,
                held // layers,
                parameters // layers,
                has_products(node),
            )

    def _over_layers(self, node: Node) -> bool:
        """Whether a node is a loop that reads rows of a parameter, one each round, and hands something on."""
        if node.op != "scan" or node.params["reverse"] or trip_count(node) < 2 or not may_run_once(node):
            return False
        consts, carry = node.params["num_consts"], node.params["num_carry"]
        scanned = [v for v in node.operands[consts + carry :] if not v.is_const]
        return (
            carry > 0
            and any(self.sources[v][0] for v in scanned)
            and not any(all(self.sources[v]) for v in scanned)
        )

    def _beside(self, node: Node, rates: Rates, read: set[Node | int]) -> tuple[float, int]:
        """Seconds and bytes of parameters of what only this node, or it first, reads beside the line."""
        took, size = 0.0, 0
        stack = list(node.operands)
        while stack:
            value = stack.pop()
            if value.is_const:
                continue
            if value.node is None:
                if value.index in self.params and value.index not in read:
                    read.add(value.index)
                    size += bytes_of(value)
            elif value.node not in read and not self.in_line(value.node):
                read.add(value.node)
                took += seconds(node_cost(value.node), rates)
                stack += value.node.operands
        return took, size

    def crossing(self) -> list[int]:
        """The bytes that cross each place between units, `[n + 1]`."""
        change = [0] * (len(self.units) + 2)

        def add(first: int, last: int, size: int) -> None:
            """Let a value cross the places after unit `first` up to before unit `last`."""
            if last > first:
                change[first + 1] += size
                change[last + 1] -= size

        for node in self.line:
            first, last = self.unit_of[node]
            for value in node.results:
                add(last, self.last_use(value), bytes_of(value))
            if first < last:
                consts, carry = node.params["num_consts"], node.params["num_carry"]
                add(first, last, sum(bytes_of(v) for v in node.operands[consts : consts + carry]))
                for value in self.stacked(node):
                    for layer in range(first, last):
                        add(layer, last, bytes_of(value) // (last - first + 1))
        total, found = 0, []
        for step in change[: len(self.units) + 1]:
            total += step
            found.append(total)
        return found

    def stacked(self, node: Node) -> list[Value]:
        """What a loop stacks and the program reads."""
        return [v for v in node.results[node.params["num_carry"] :] if self.last_use(v) >= 0]

    def last_use(self, value: Value) -> int:
        """The last unit that reads a value of the line; how many there are if it is returned, -1 if none."""
        last = -1
        for node, position in value.uses:
            if node is self.graph.ret:
                return len(self.units)
            if node in self.unit_of:
                first, end = self.unit_of[node]
                is_initial = self.is_cut(node) and position >= node.params["num_consts"]
                last = max(last, first if is_initial else end)
        return last


def has_products(node: Node) -> bool:
    """Whether a node, or one in its regions, is a product of matrices or a convolution."""
    inner = (each for region in node.regions for each in region.walk())
    return node.op in _PRODUCTS or any(each.op in _PRODUCTS for each in inner)


def held_bytes(node: Node) -> int:
    """The bytes of all that a node computes, in its regions too; of a rematerialised one its results."""
    own = sum(map(bytes_of, node.results))
    if not node.regions or node.op in ("remat2", "checkpoint"):
        return own
    inner = max(sum(held_bytes(each) for each in region) for region in node.regions)
    return own + inner * max(trip_count(node), 1)


def _needed(graph: Graph) -> set[Node]:
    """The nodes that the outputs depend on."""
    found: set[Node] = set()
    stack = list(graph.outputs)
    while stack:
        node = stack.pop().node
        if node is not None and node not in found:
            found.add(node)
            stack += node.operands
    return found


def _sources(graph: Graph, params: Collection[int]) -> dict[Value, tuple[bool, bool]]:
    """For each value whether it depends on parameters, and whether on other inputs."""
    found = {value: (i in params, i not in params) for i, value in enumerate(graph.inputs)}
    for node in graph:
        given = [found[value] for value in node.operands if not value.is_const]
        each = (any(p for p, _ in given), any(b for _, b in given))
        found.update((value, each) for value in node.results)
    return found
