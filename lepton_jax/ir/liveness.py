"""How much memory a graph needs at once: an estimate from last uses."""

from __future__ import annotations

from dataclasses import dataclass

from lepton_jax.ir.cost import bytes_of
from lepton_jax.ir.graph import Graph, Node, Value


@dataclass(frozen=True, slots=True)
class Peak:
    """The most bytes of arrays that are alive at once.

    Attributes:
        bytes: how many.
        node: while which node runs; None when the inputs alone are the most.
    """

    bytes: int
    node: Node | None


def peak_bytes(graph: Graph) -> Peak:
    """The peak of a graph that keeps inputs and constants to the end and frees the rest after its last use.

    A node with regions adds what these need besides their inputs, which are counted outside.
    XLA fuses and reuses, so the true peak is lower as a rule; two forms of one
    program can be compared.
    """
    return _Peaks().peak(graph)


class _Peaks:
    """Peaks of graphs; a region that several nodes share is looked at once."""

    def __init__(self) -> None:
        self._extra: dict[Graph, int] = {}

    def peak(self, graph: Graph) -> Peak:
        last = _last_uses(graph)
        held = sum(map(bytes_of, graph.inputs)) + sum(map(bytes_of, _constants(graph)))
        most, place = held, None
        for node in graph:
            held += sum(map(bytes_of, node.results))
            needed = held + max((self.extra(region) for region in node.regions), default=0)
            if needed > most:
                most, place = needed, node
            dead = [value for value in dict.fromkeys(node.operands) if last.get(value) is node]
            held -= sum(map(bytes_of, dead))
            held -= sum(bytes_of(value) for value in node.results if not value.uses)
        return Peak(most, place)

    def extra(self, region: Graph) -> int:
        """What a region needs besides its inputs."""
        if region not in self._extra:
            self._extra[region] = self.peak(region).bytes - sum(map(bytes_of, region.inputs))
        return self._extra[region]


def _last_uses(graph: Graph) -> dict[Value, Node]:
    """For each value made in the graph that is not returned, the last node that reads it."""
    last: dict[Value, Node] = {}
    for node in graph:
        for value in node.operands:
            if value.node is not None:
                last[value] = node
    for value in graph.outputs:
        last.pop(value, None)
    return last


def _constants(graph: Graph) -> list[Value]:
    """The constants that a graph reads, each array once."""
    found: dict[int, Value] = {}
    for node in (*graph, graph.ret):
        for value in node.operands:
            if value.is_const:
                found.setdefault(id(value.const), value)
    return list(found.values())
