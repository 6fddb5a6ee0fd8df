"""Binding time: what depends on some of the inputs alone, and so can be computed once."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import Slot, slots

# Operations whose result may be another each time, although JAX gives them no effect.
_UNREPEATABLE: Final = frozenset({"pure_callback", "rng_uniform", "infeed", "recv"})


def binding_time(graph: Graph, params: Collection[int]) -> frozenset[Value]:
    """The values that depend on nothing but the given inputs and on constants.

    Args:
        graph: the program.
        params: positions among its inputs.

    Returns:
        The values, constants and those of regions included. A value of a loop's body may
        differ from one iteration to the next: a slice of stacked parameters depends on the
        parameters alone. Results of a branch or a while loop also depend on the predicate.
        What has an effect, reads a mutable reference or calls back to the host does not
        belong to them; JAX's random numbers are functions of their key and do.

    Raises:
        IndexError: there is no such input.
    """
    for position in params:
        if not 0 <= position < len(graph.inputs):
            raise IndexError(f"{graph.name} has {len(graph.inputs)} inputs, there is none at {position}")
    return _Binding(graph, params).run()


class _Binding:
    """Marks what is late; all else is early. Marks only grow, so a worklist reaches the end."""

    def __init__(self, graph: Graph, params: Collection[int]) -> None:
        self.graphs = graph.graphs()
        self.late: set[Value] = set()
        self.work: list[Value] = []
        self.into: dict[Node, dict[int, Slot]] = {}
        self.out: dict[Value, list[tuple[Node, Slot]]] = {}
        early = set(params)
        self.mark(value for i, value in enumerate(graph.inputs) if i not in early)

    def run(self) -> frozenset[Value]:
        for graph in self.graphs:
            for node in graph:
                self.seed(node)
        while self.work:
            value = self.work.pop()
            for node, position in value.uses:
                self.enter(node, position)
            for node, slot in self.out.get(value, ()):
                self.leave(node, slot)
        return frozenset(self.values()) - self.late

    def values(self) -> Iterable[Value]:
        for graph in self.graphs:
            yield from graph.inputs
            for node in (*graph, graph.ret):
                yield from (value for value in node.operands if value.is_const)
                yield from node.results

    def mark(self, values: Iterable[Value]) -> None:
        for value in values:
            if value not in self.late:
                self.late.add(value)
                self.work.append(value)

    def seed(self, node: Node) -> None:
        """Mark what is late of itself, and note how regions are tied to the node."""
        found = slots(node) if node.regions else []
        fixed = not found or any(slot.kind == "opaque" for slot in found)
        references = any(not _jax.is_array_aval(value.aval) for value in (*node.operands, *node.results))
        if (fixed and node.effects) or node.op in _UNREPEATABLE or references:
            self.mark(node.results)
        for slot in found:
            if slot.operand is not None:
                self.into.setdefault(node, {})[slot.operand] = slot
            for r, i in slot.outputs:
                self.out.setdefault(node.regions[r].outputs[i], []).append((node, slot))

    def enter(self, node: Node, position: int) -> None:
        """A late value is read."""
        if not node.regions:
            self.mark(node.results)
            return
        slot = self.into[node][position]
        self.mark(node.regions[r].inputs[i] for r, i in slot.inputs)
        if slot.result is not None:
            self.mark([node.results[slot.result]])
        if slot.kind == "predicate":
            self.mark(node.results)
        if slot.kind == "opaque":
            self.mark(node.results)
            self.mark(value for region in node.regions for value in region.inputs)

    def leave(self, node: Node, slot: Slot) -> None:
        """A late value is returned by a region."""
        if slot.kind in ("predicate", "opaque"):
            self.mark(node.results)
            return
        self.mark(node.regions[r].inputs[i] for r, i in slot.inputs)
        if slot.result is not None:
            self.mark([node.results[slot.result]])
