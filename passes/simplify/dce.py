"""Dead code elimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import Slot, drop_slots, editable, slots
from lepton_jax.rewrite import Pass, PassContext


@dataclass(frozen=True)
class DeadCode(Pass):
    """Removes what nobody reads, through the interfaces of loops, branches and calls.

    Before:
        %1, %2 = scan[...] %x %unused { region body(...) { ... return %c, %d } }   (%2 is not read)
    After:
        %1 = scan[...] %x { region body(...) { ... return %c } }

    A scan output that nobody reads goes, and so does a carry that feeds nothing but itself,
    and every operand that is then not needed. Operations with effects stay. Exact.
    """

    name: ClassVar[str] = "dce"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """One sweep from the last node to the first, regions on the way."""
        done: set[Graph] = set()
        stack = [reversed(graph)]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                continue
            if node.is_dead:
                if node.graph is not None and ctx.fire("dead-node", node):
                    node.graph.erase(node)
                continue
            if node.regions and editable(node):
                _drop_dead_slots(node, ctx)
            for region in node.regions:
                if region not in done:
                    done.add(region)
                    stack.append(reversed(region))


def _drop_dead_slots(node: Node, ctx: PassContext) -> None:
    """Remove the slots that neither a live result nor an effect depends on."""
    every = slots(node)
    dead = _dead_slots(node, every)
    if not dead or not ctx.fire("dead-slot", node):
        return
    drop_slots(node, dead)


def _dead_slots(node: Node, every: list[Slot]) -> list[Slot]:
    """Slots that cannot reach a result that is read, found by a fixpoint over the carries."""
    live: set[Slot] = {
        slot
        for slot in every
        if slot.kind == "predicate" or (slot.result is not None and node.results[slot.result].uses)
    }
    by_input = {(r, i): slot for slot in every for r, i in slot.inputs}
    needs = [_Liveness(region) for region in node.regions]
    work = list(live)
    for r, region in enumerate(node.regions):
        work += _new_live(needs[r].of_effects(), r, region, by_input, live)
    while work:
        slot = work.pop()
        for r, i in slot.outputs:
            region = node.regions[r]
            work += _new_live(needs[r].of(region.outputs[i]), r, region, by_input, live)
    return [slot for slot in every if slot not in live]


def _new_live(
    reached: list[Value], r: int, region: Graph, by_input: dict[tuple[int, int], Slot], live: set[Slot]
) -> list[Slot]:
    fresh = []
    for value in reached:
        slot = by_input[r, value.index]
        if slot not in live:
            live.add(slot)
            fresh.append(slot)
    return fresh


class _Liveness:
    """Which inputs of a region its values depend on; every node is looked at once."""

    def __init__(self, region: Graph) -> None:
        self.region = region
        self.seen: set[Value] = set()

    def of_effects(self) -> list[Value]:
        """Inputs that operations with effects need."""
        return [v for node in self.region if node.effects for operand in node.operands for v in self.of(operand)]

    def of(self, value: Value) -> list[Value]:
        """Inputs that `value` needs and that no earlier question has reached."""
        found = []
        stack = [value]
        while stack:
            value = stack.pop()
            if value in self.seen or value.is_const:
                continue
            self.seen.add(value)
            if value.node is None:
                found.append(value)
            else:
                stack += value.node.operands
        return found
