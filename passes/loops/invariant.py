"""Loop-invariant code motion."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import copy_node
from lepton_jax.ir.regions import LOOPS, add_constant, editable, erase_dead_nodes, outer_of, trip_count
from lepton_jax.rewrite import Pass, PassContext

_MOVEMENT: Final = frozenset(
    {
        "broadcast_in_dim",
        "reshape",
        "transpose",
        "squeeze",
        "expand_dims",
        "slice",
        "iota",
        "convert_element_type",
        "rev",
        "concatenate",
        "pad",
        "copy",
    }
)
"""Operations that a loop body repeats at little or no cost."""


@dataclass(frozen=True)
class Invariant(Pass):
    """Computes before a loop what is the same on every iteration.

    Before:
        scan[...] %a %b %x { region body(%a, %b, %x) { %3 = dot_general %a %b; ... } }
    After:
        %3 = dot_general %a %b;  scan[...] %3 %x { ... }

    What moves must do real work and not be larger than what it is made of (a broadcast in front of a
    loop costs memory and saves nothing). Loops known to run at most once are left
    alone. Exact. XLA moves most of this itself; other passes count on seeing it.
    """

    name: ClassVar[str] = "invariant"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Inner loops first, so that code can move out of several loops."""
        for inner in reversed(graph.graphs()):
            for node in list(inner):
                if node.op in LOOPS and editable(node) and trip_count(node) != 1:
                    for index in range(len(node.regions)):
                        _hoist(node, index, ctx)


def _hoist(loop: Node, index: int, ctx: PassContext) -> None:
    region = loop.regions[index]
    outside = outer_of(loop, region)
    invariant = _invariant_nodes(region, outside)
    order = {node: position for position, node in enumerate(invariant)}
    for node in invariant:
        if all(user in order for value in node.results for user, _ in value.uses):
            continue
        cone = sorted(_cone(node, order, outside), key=order.__getitem__)
        if not _pays(node, cone) or not ctx.fire("invariant-node", node):
            continue
        _copy_outside(cone, loop, outside)
        for value in node.results:
            if value.uses:
                value.replace_uses(add_constant(loop, index, outside[value]))
    erase_dead_nodes(region)


def _invariant_nodes(region: Graph, outside: dict[Value, Value]) -> list[Node]:
    """Nodes that depend on nothing but constants of the loop, in program order."""
    found: dict[Node, None] = {}
    for node in region:
        if node.effects or node.op in ("rng_uniform", "optimization_barrier"):
            continue
        if all(v.is_const or v in outside or v.node in found for v in node.operands):
            found[node] = None
    return list(found)


def _cone(node: Node, invariant: Container[Node], outside: dict[Value, Value]) -> list[Node]:
    """The nodes that a node is made of, itself included, without those that are outside already."""
    seen: dict[Node, None] = {}
    stack = [node]
    while stack:
        current = stack.pop()
        if current in seen or current not in invariant or current.results[0] in outside:
            continue
        seen[current] = None
        stack += [v.node for v in current.operands if v.node is not None]
    return list(seen)


def _pays(node: Node, cone: Sequence[Node]) -> bool:
    """Whether the work behind a node is worth keeping its result."""
    if all(n.op in _MOVEMENT for n in cone):
        return False
    made = {value for n in cone for value in n.results}
    leaves = [value for n in cone for value in n.operands if value not in made]
    result = sum(_elements(value) for value in node.results)
    return result <= max(map(_elements, leaves), default=0)


def _elements(value: Value) -> int:
    return math.prod(value.shape) if value.is_static else 1


def _copy_outside(cone: Sequence[Node], loop: Node, outside: dict[Value, Value]) -> None:
    """Compute nodes of the region in front of the loop."""
    assert loop.graph is not None
    for node in cone:
        copy = copy_node(node, [v if v.is_const else outside[v] for v in node.operands])
        loop.graph.insert(copy, loop)
        outside.update(zip(node.results, copy.results, strict=True))
