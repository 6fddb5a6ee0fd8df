"""Islands: connected products, sums, transposes and scalings, read as terms of the algebra of matrices."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes.simplify._chains.labels import is_plain_dot
from lepton_jax.passes.simplify._movement.common import is_free, unplaced
from lepton_jax.passes.simplify._saturate.reading import READERS, Frame, Sight, Term, read, seen
from lepton_jax.rewrite import PassContext

_MOST_NODES: Final = 40
"""An island of more operations ends there: what lies beyond is read like any other array."""


@dataclass(eq=False)
class Island:
    """A connected part of a graph in the language of `language.py`.

    Attributes:
        frame: what all of its arrays have in common.
        nodes: its operations in program order.
        terms: what they compute, each term after those that it is made of.
        leaves: the arrays that `Leaf` terms stand for.
        outputs: what is read from outside, in program order, with the number of its term.
    """

    frame: Frame
    nodes: list[Node]
    terms: list[Term] = field(default_factory=list)
    leaves: list[Value] = field(default_factory=list)
    outputs: list[tuple[Value, int]] = field(default_factory=list)


def islands(graph: Graph, ctx: PassContext) -> list[Island]:
    """The islands of a graph, its regions left out, with a product and another product or a sum."""
    order = {node: i for i, node in enumerate(graph) if node.op in READERS}
    taken: set[Node] = set()
    found = []
    for node in order:
        if node.op != "dot_general" or node in taken or not is_plain_dot(node):
            continue
        frame = Frame.of(node)
        if frame is None or not _can_join(node, frame, ctx):
            continue
        nodes = _grow(node, frame, order, taken, ctx)
        taken.update(nodes)
        island = _written(Island(frame, sorted(nodes, key=order.__getitem__)))
        if island.outputs and sum(term[0] in ("Mul", "Add") for term in island.terms) > 1:
            found.append(island)
    return found


def _grow(
    seed: Node, frame: Frame, order: dict[Node, int], taken: set[Node], ctx: PassContext
) -> dict[Node, None]:
    """The operations around a product that can be read in its frame, nearest first.

    Products that read the same array come after all that are made of one another.
    """
    found: dict[Node, None] = {}
    near, far = deque([seed]), deque[Node]()
    while (near or far) and len(found) < _MOST_NODES:
        node = (near or far).popleft()
        if node in found or node in taken or node not in order or not _can_join(node, frame, ctx):
            continue
        found[node] = None
        near.extend(value.node for value in node.operands if value.node is not None)
        near.extend(node.result.users())
        far.extend(user for value in node.operands for user in value.users() if user.op == "dot_general")
    return found


def _can_join(node: Node, frame: Frame, ctx: PassContext) -> bool:
    if node.context is not frame.context or node.result.dtype != frame.dtype or not is_free(node):
        return False
    if not node.result.is_static or not all(value.is_static for value in node.operands):
        return False
    return read(node, frame) is not None and unplaced(node, ctx) is None


def _written(island: Island) -> Island:
    """Write down the terms of an island's operations."""
    numbers: dict[Term, int] = {}
    known: dict[Value, int] = {}

    def term(*parts: Any) -> int:
        number = numbers.setdefault(parts, len(numbers))
        if number == len(island.terms):
            island.terms.append(parts)
        return number

    def sight(found: Sight) -> int:
        if isinstance(found.value, float):
            return term("Num", found.value)
        number = known.get(found.value)
        if number is None:
            number = known[found.value] = term("Leaf", len(island.leaves))
            island.leaves.append(found.value)
        return term("T", number) if found.turned else number

    def negative(number: int) -> int:
        return term("Scale", term("Num", -1.0), number)

    inside = set(island.nodes)
    for node in island.nodes:
        form = read(node, island.frame)
        assert form is not None
        parts = [sight(part) for part in form.parts]
        match form.op:
            case "Sub":
                number = term("Add", parts[0], negative(parts[1]))
            case "Same":
                number = parts[0]
            case "Neg":
                number = negative(parts[0])
            case op:
                number = term(op, *parts)
        known[node.result] = term("T", number) if form.turned else number
        if any(user not in inside for user, _ in node.result.uses):
            island.outputs.append((node.result, known[node.result]))
    return island


def leaf_shape(value: Value, frame: Frame) -> tuple[int, int]:
    """The rows and columns that an array has in a frame."""
    found = seen(value.shape, frame)
    assert found is not None
    return found
