"""Dead code elimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepton_jax.ir import regions
from lepton_jax.ir.graph import Graph, Node, Value, constant
from lepton_jax.ir.regions import Slot, drop_slots, editable
from lepton_jax.rewrite import Pass, PassContext


@dataclass(frozen=True)
class DeadCode(Pass):
    """Removes what nobody reads, through the interfaces of loops, branches and calls.

    Before:
        %1, %2 = scan[...] %x %unused { region body(...) { ... return %c, %d } }   (%2 is not read)
    After:
        %1 = scan[...] %x { region body(...) { ... return %c } }

    A scan output that nobody reads goes, and so does a carry that feeds nothing but itself (through
    loops inside the loop too), and every operand that is then not needed. Operations with effects
    stay. Exact.
    """

    name: ClassVar[str] = "dce"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Find out what is needed, then sweep; again if a function has lost all callers but one."""
        while True:
            liveness = _Liveness(graph)
            shared = [root for root in liveness.roots if len(root.parents) > 1]
            for root in liveness.roots:
                if root is graph or root.parents:
                    _sweep(root, liveness, ctx)
            if not any(len(root.parents) == 1 for root in shared):
                return


class _Liveness:
    """Which nodes and slots reach a result of the program or an effect.

    Graphs whose interface is fixed (the program itself, functions with several callers, functions with
    derivatives of their own, ...) are roots: all that they return is needed. What the region of any
    other node returns is needed only where a slot that leads to it is.

    Attributes:
        nodes: the nodes that are needed.
        flexible: the nodes whose slots may go, with their slots.
        roots: the graphs whose interface is fixed, outer before inner.
    """

    def __init__(self, graph: Graph) -> None:
        self.nodes: set[Node] = set()
        self.flexible: dict[Node, _Slots] = {}
        self._owners: dict[Graph, Node] = {}
        self._values: set[Value] = set()
        self._work: list[Value] = []
        self.roots = {graph: None}
        for node in [node for inner in graph.graphs() for node in inner.holders]:
            if editable(node):
                self.flexible[node] = _Slots(node)
                self._owners.update(dict.fromkeys(node.regions, node))
            else:
                self.roots.update(dict.fromkeys(node.regions))
        for root in self.roots:
            self._work += root.outputs
            self._need_effects(root)
        self._settle()

    def dead_slots(self, node: Node) -> list[Slot]:
        """The slots of a node that nothing needs; none where its interface is fixed."""
        known = self.flexible.get(node)
        return [] if known is None else [slot for slot in known.all if slot not in known.live]

    def keep(self, node: Node) -> None:
        """Need a node with all that is in it."""
        stack = [node]
        for current in stack:
            self._need_node(current)
            self._work += current.operands
            known = self.flexible.get(current)
            if known is not None:
                for slot in known.all:
                    self._need_slot(current, slot)
                stack += [inner for region in current.regions for inner in region]
        self._settle()

    def _settle(self) -> None:
        while self._work:
            value = self._work.pop()
            if value.is_const or value in self._values:
                continue
            self._values.add(value)
            if value.node is not None:
                self._need_node(value.node)
                if value.node in self.flexible:
                    self._need_slot(value.node, self.flexible[value.node].of_result[value.index])
            elif value.graph is not None and (owner := self._owners.get(value.graph)) is not None:
                self._need_slot(owner, self.flexible[owner].of_input[value])

    def _need_node(self, node: Node) -> None:
        if node in self.nodes:
            return
        self.nodes.add(node)
        known = self.flexible.get(node)
        if known is None:
            self._work += node.operands
            return
        for slot in known.all:
            if slot.kind == "predicate":
                self._need_slot(node, slot)
        for region in node.regions:
            self._need_effects(region)

    def _need_effects(self, graph: Graph) -> None:
        for node in graph:
            if node.effects:
                self._need_node(node)

    def _need_slot(self, node: Node, slot: Slot) -> None:
        live = self.flexible[node].live
        if slot in live:
            return
        live.add(slot)
        if slot.operand is not None:
            self._work.append(node.operands[slot.operand])
        self._work += [node.regions[r].outputs[i] for r, i in slot.outputs]


class _Slots:
    """The slots of a node, and those that are needed."""

    def __init__(self, node: Node) -> None:
        self.all = regions.slots(node)
        self.live: set[Slot] = set()
        self.of_result = {slot.result: slot for slot in self.all if slot.result is not None}
        self.of_input = {node.regions[r].inputs[i]: slot for slot in self.all for r, i in slot.inputs}


def _sweep(graph: Graph, liveness: _Liveness, ctx: PassContext, tidy: bool = False) -> None:
    """Remove what is dead, last node first, and ask for each change.

    Args:
        tidy: no slot of the nodes in it, however deep inside, is dead.
    """
    for node in reversed(graph):
        if node not in liveness.nodes:
            if ctx.fire("dead-node", node):
                graph.erase(node)
            else:
                liveness.keep(node)
        elif node in liveness.flexible:
            if not tidy and _has_dead_slots(node, liveness):
                if ctx.fire("dead-slot", node):
                    _prune(node, liveness)
                    continue
                liveness.keep(node)
            for region in node.regions:
                _sweep(region, liveness, ctx, tidy=True)


def _has_dead_slots(node: Node, liveness: _Liveness) -> bool:
    """Whether a node or one inside it has slots that nothing needs."""
    stack = [node]
    for current in stack:
        if liveness.dead_slots(current):
            return True
        inside = (inner for region in current.regions for inner in region)
        stack += [inner for inner in inside if inner in liveness.flexible and inner in liveness.nodes]
    return False


def _prune(node: Node, liveness: _Liveness) -> None:
    """Remove dead slots and dead nodes of a node, and of those inside it.

    First the results, then last to first what made them, at last the operands: each is read only by what
    has gone before it.
    """
    dead = liveness.dead_slots(node)
    nothing = constant(None, None)
    for r, region in enumerate(node.regions):
        gone = {i for slot in dead for q, i in slot.outputs if q == r}
        if gone:
            region.set_outputs([nothing if i in gone else v for i, v in enumerate(region.outputs)])
        for inner in reversed(region):
            if inner not in liveness.nodes:
                region.erase(inner)
            elif inner in liveness.flexible:
                _prune(inner, liveness)
    if dead:
        drop_slots(node, dead)
