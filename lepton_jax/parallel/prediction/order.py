"""The order in which XLA runs what may run in several orders."""

from __future__ import annotations

from collections.abc import Callable

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.parallel.prediction.fusing import RENAMED
from lepton_jax.parallel.prediction.windows import PRODUCTS


def ordered(graph: Graph, size: Callable[[Value], int]) -> list[Node]:
    """The nodes of a graph, in an order of XLA's: of two products of one array that both may run, one that
    frees more than it makes runs before one that does not.

    So it is with the two products of the gradient of attention: that of the weights frees them.

    Args:
        graph: its nodes, without those of their regions.
        size: bytes of a value.
    """
    nodes = list(graph)
    place = {node: float(i) for i, node in enumerate(nodes)}

    def grows(node: Node) -> int:
        """The bytes that a node makes, less those that nobody reads after it."""
        last = [
            value
            for value in dict.fromkeys(node.operands)
            if value.node in place
            and all(place.get(user, len(place)) <= place[node] for user, _ in value.uses)
        ]
        return sum(map(size, node.results)) - sum(map(size, last))

    moved: dict[Node, float] = {}
    for node in nodes:
        if node.op not in PRODUCTS or grows(node) <= 0:
            continue
        readers = {user for value in node.operands for user, _ in value.uses if user.op in PRODUCTS}
        for other in readers:
            if place.get(other, -1) <= place[node] or grows(other) >= 0:
                continue
            if all(value.node is None or place.get(value.node, -1) < place[node] for value in other.operands):
                moved |= dict.fromkeys(_renamed(other), place[node] - 0.5)
    return sorted(nodes, key=lambda node: moved.get(node, place[node]))


def _renamed(node: Node) -> list[Node]:
    """A node and those that only rename its result."""
    found = [node]
    while len(found[-1].results[0].uses) == 1:
        ((user, _),) = found[-1].results[0].uses
        if user.op not in RENAMED:
            break
        found.append(user)
    return found
