"""Loop-invariant code motion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import copy_node
from lepton_jax.ir.regions import LOOPS, add_constant, drop_slots, editable, outer_of, slots, trip_count
from lepton_jax.passes.loops._parts.worth import MOVEMENT
from lepton_jax.rewrite import Pass, PassContext, erase_dead

_STUCK: Final = frozenset({"rng_uniform", "optimization_barrier"})
"""Operations that mean what they say where they stand."""

_RISKY: Final = frozenset({"while", "pure_callback", "ffi_call"})
"""Operations that may never end, or fail."""


@dataclass(frozen=True)
class Invariant(Pass):
    """Computes before a loop what is the same on every iteration.

    Before:
        scan[...] %a %b %x { region body(%a, %b, %x) { %3 = dot_general %a %b; ... } }
    After:
        %3 = dot_general %a %b;  scan[...] %3 %x { ... }

    What moves must do real work and not be larger than what it is made of (a broadcast in front of a
    loop costs memory and saves nothing). Loops known to run at most once are left alone, and what may
    never end or call out is not moved out of a loop that may not run at all. Exact. XLA moves
    most of this itself; other passes count on seeing it.
    """

    name: ClassVar[str] = "invariant"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Inner loops first, so that code can move out of several loops."""
        for inner in reversed(graph.graphs()):
            for node in list(inner):
                if node.regions and node.op in LOOPS and editable(node) and not _runs_at_most_once(node):
                    _simplify(node, ctx)


def _runs_at_most_once(loop: Node) -> bool:
    return loop.op == "scan" and type(loop.params["length"]) is int and loop.params["length"] <= 1


def _simplify(loop: Node, ctx: PassContext) -> None:
    moved = [_hoist(loop, index, ctx) for index in range(len(loop.regions))]
    if any(moved):
        _drop_unread_constants(loop)


@dataclass(slots=True)
class _Fixed:
    """What is known about a node of a loop that does the same on every iteration.

    Attributes:
        number: its place in program order.
        works: whether it is made by more than moving data.
        source: the number of elements of the largest value from outside that it is made of.
    """

    number: int
    works: bool
    source: int


def _hoist(loop: Node, index: int, ctx: PassContext) -> bool:
    """Move what pays out of one region, last nodes first, each with what it is made of."""
    region = loop.regions[index]
    if not region.is_static:
        return False
    outside = outer_of(loop, region)
    fixed = _fixed_nodes(region, outside, certain=trip_count(loop) > 1)
    moved = False
    for node in reversed(list(fixed)):
        if all(user in fixed for value in node.results for user, _ in value.uses):
            continue  # dead, or moved with its readers
        cone = _cone(node, fixed, outside)
        if not _pays(node, cone, fixed[node]) or not ctx.fire("invariant-node", node):
            del fixed[node]
            continue
        _copy_outside(cone, loop, outside)
        for value in node.results:
            if value.uses:
                value.replace_uses(add_constant(loop, index, outside[value]))
        erase_dead(node)
        moved = True
    return moved


def _fixed_nodes(region: Graph, outside: dict[Value, Value], certain: bool) -> dict[Node, _Fixed]:
    """Nodes that depend on nothing but constants of the loop and may move, in program order.

    Args:
        certain: whether the loop is known to run.
    """
    found: dict[Node, _Fixed] = {}
    for node in region:
        fixed = all(v.is_const or v in outside or v.node in found for v in node.operands)
        if not fixed or node.effects or not _may_move(node, certain):
            continue
        made = [found[v.node] for v in node.operands if v.node is not None]
        given = [math.prod(v.shape) for v in node.operands if v.node is None]
        works = node.op not in MOVEMENT or any(m.works for m in made)
        found[node] = _Fixed(len(found), works, max([*given, *(m.source for m in made)], default=0))
    return found


def _may_move(node: Node, certain: bool) -> bool:
    """Whether a node, with what is in it, may run in another place, and, unless `certain`, without need."""
    stuck = _STUCK if certain else _STUCK | _RISKY
    return node.op not in stuck and not any(n.op in stuck for region in node.regions for n in region.walk())


def _pays(node: Node, cone: Sequence[Node], fixed: _Fixed) -> bool:
    """Whether the work behind a node is worth keeping its result."""
    if all(n.op in MOVEMENT for n in cone or [node]):
        return False
    return bool(sum(math.prod(value.shape) for value in node.results) <= fixed.source)


def _cone(node: Node, fixed: Mapping[Node, _Fixed], outside: dict[Value, Value]) -> list[Node]:
    """The nodes that a node is made of, itself included, without those that are outside already, in order."""
    seen: set[Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in seen or current.results[0] in outside:
            continue
        seen.add(current)
        stack += [v.node for v in current.operands if v.node is not None]
    return sorted(seen, key=lambda n: fixed[n].number)


def _copy_outside(cone: Sequence[Node], loop: Node, outside: dict[Value, Value]) -> None:
    """Compute nodes of the region in front of the loop, under the loop's name stack."""
    assert loop.graph is not None
    for node in cone:
        copy = copy_node(node, [v if v.is_const else outside[v] for v in node.operands])
        if copy.source is not None and loop.source is not None:
            copy.source = _jax.inlined_source(copy.source, loop.source, None)
        loop.graph.insert(copy, loop)
        outside.update(zip(node.results, copy.results, strict=True))


def _drop_unread_constants(loop: Node) -> None:
    """Give up operands that only what has moved had read."""
    unread = [
        slot
        for slot in slots(loop)
        if slot.kind == "constant" and not any(loop.regions[r].inputs[i].uses for r, i in slot.inputs)
    ]
    if unread:
        drop_slots(loop, unread)
