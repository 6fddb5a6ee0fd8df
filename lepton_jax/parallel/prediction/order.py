"""The order in which XLA runs what may run in several orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import LOOPS
from lepton_jax.parallel.prediction.elements import FUSED, RENAMED
from lepton_jax.parallel.prediction.narrowing import narrowed
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
        return sum(map(size, node.results)) - sum(map(size, _last_read(node, place, place[node])))

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


def behind_loops(
    nodes: Sequence[Node], made: Callable[[Node], int], size: Callable[[Value], int]
) -> list[Node]:
    """The nodes of a graph, products that could run before a loop behind it where it frees more than they do.

    So are gradients of the last layer's weights where a loop goes back through the others: what they are made
    of waits. (XLA's list scheduler runs first what frees most: `hlo_memory_scheduler` in OpenXLA's sources.)

    Args:
        nodes: in order.
        made: bytes that a node makes.
        size: bytes of a value.
    """
    place = {node: float(i) for i, node in enumerate(nodes)}
    moved: dict[Node, float] = {}
    for loop in nodes:
        if loop.op not in LOOPS:
            continue
        at = place[loop]
        grows = made(loop) - sum(map(size, _last_read(loop, place, at)))
        for value, narrow in narrowed(loop).items():
            if not any(user.op in LOOPS and place.get(user, at) > at for user, _ in value.uses):
                grows -= size(value) * narrow.itemsize // value.dtype.itemsize
        for node in nodes:
            if node.op not in PRODUCTS or place[node] > at:
                continue
            group = _needing(node, place, at)
            if group is None or loop in group:
                continue
            freed = sum(map(size, _last_read(node, place, at)))
            if grows < made(node) - freed:
                moved |= {each: at + (place[each] + 1) / (len(nodes) + 2) for each in group}
    return sorted(nodes, key=lambda node: moved.get(node, place[node]))


def _last_read(node: Node, place: Mapping[Node, float], end: float) -> list[Value]:
    """What is made by nodes with places and read by one of them, and by nobody behind a place."""
    return [
        value
        for value in dict.fromkeys(node.operands)
        if value.node in place and all(place.get(user, len(place)) <= end for user, _ in value.uses)
    ]


def _needing(node: Node, place: Mapping[Node, float], end: float) -> list[Node] | None:
    """A node and those before a place that need it, if all of these work on elements; else None."""
    found = {node: None}
    ahead = [node]
    while ahead:
        for value in ahead.pop().results:
            for user, _ in value.uses:
                if place.get(user, math.inf) > end or user in found:
                    continue
                if user.op not in FUSED:
                    return None
                found[user] = None
                ahead.append(user)
    return list(found)


def _renamed(node: Node) -> list[Node]:
    """A node and those that only rename its result."""
    found = [node]
    while len(found[-1].results[0].uses) == 1:
        ((user, _),) = found[-1].results[0].uses
        if user.op not in RENAMED:
            break
        found.append(user)
    return found
