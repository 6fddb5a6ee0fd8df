"""What is between two loops: whether they can run side by side, and what must move out of the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._parts.scan import Scan
from lepton_jax.passes.simplify._demand.makers import ELEMENTWISE

VIEWS: Final = frozenset({"reshape", "squeeze", "broadcast_in_dim"})
"""Operations that may do no more than name the numbers of a row in another way."""

_FARTHEST: Final = 256


@dataclass(slots=True)
class Pair:
    """Two loops, the first before the second.

    Attributes:
        results: what the second scans over and the first determines, row by row.
        made: the values that depend on the first loop, of those between the two.
        early: the nodes between them that the second needs and the first does not determine, in order.
    """

    first: Node
    second: Node
    results: list[Value]
    made: set[Value]
    early: list[Node]


def pair_of(first: Node, second: Node) -> Pair | None:
    """Two loops that can run side by side: the second needs of the first one row at a time, if anything."""
    between = _between(first, second)
    if between is None:
        return None
    made: set[Value] = set(first.results)
    for node in between:
        if any(v in made for v in node.operands):
            made.update(node.results)
    scan = Scan(second)
    if any(v in made for v in (*scan.init, *(scan.outer[c] for c in scan.consts))):
        return None
    results = list(dict.fromkeys(v for x in scan.scanned if (v := scan.outer[x]) in made))
    length = scan.length
    path = _needed(results, between)
    rows = {node for node in path if any(v in made for v in node.operands)}
    if not all(_by_row(node, made, length) for node in rows):
        return None
    carries = set(first.results[: first.params["num_carry"]])
    if any(v in carries for v in (*results, *(v for node in rows for v in node.operands))):
        return None
    early = _needed([*second.operands, *(v for node in rows for v in node.operands)], between)
    moved = [node for node in between if node in early and node not in rows]
    return None if any(node.effects for node in moved) else Pair(first, second, results, made, moved)


def _between(first: Node, second: Node) -> list[Node] | None:
    """The nodes between two of the same graph, unless they are many or they stand the other way round."""
    found: list[Node] = []
    node = first.next
    while node is not second:
        if node is None or node.graph is None or len(found) > _FARTHEST:
            return None
        found.append(node)
        node = node.next
    return found


def _needed(values: Iterable[Value], between: list[Node]) -> set[Node]:
    """The nodes among `between` that values are made of."""
    inside, found = set(between), set[Node]()
    stack = [v.node for v in values]
    while stack:
        node = stack.pop()
        if node is not None and node in inside and node not in found:
            found.add(node)
            stack += [v.node for v in node.operands]
    return found


def _by_row(node: Node, made: set[Value], length: int) -> bool:
    """Whether each row of a node's result is made of the same row of what the loop has made."""
    if len(node.results) != 1 or node.effects or node.result.shape[:1] != (length,):
        return False
    if any(v in made and v.shape[:1] != (length,) for v in node.operands):
        return False
    if node.op in ELEMENTWISE:
        return all(v.ndim in (0, node.result.ndim) for v in node.operands)
    if node.op not in VIEWS or node.result.aval.size != node.operands[0].aval.size:
        return False
    return node.op != "broadcast_in_dim" or node.params["broadcast_dimensions"][:1] == (0,)
