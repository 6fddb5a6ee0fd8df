"""When the arrays of a program are in memory: from when they are made to when they are last read.

A loop is followed once: what it reads of outside is there to its end.
"""

from __future__ import annotations

from collections.abc import Iterable

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import LOOPS, RUN_ONCE, Slot, slots
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.elements import FUSED
from lepton_jax.parallel.prediction.events import Walked
from lepton_jax.parallel.prediction.fusing import named
from lepton_jax.parallel.prediction.lanes import is_spread
from lepton_jax.parallel.prediction.leaves import ONCE, Leaves
from lepton_jax.parallel.prediction.narrowing import Narrowing
from lepton_jax.parallel.prediction.order import behind_loops, ordered
from lepton_jax.parallel.prediction.repeats import repeated
from lepton_jax.parallel.prediction.scheduling import reorder
from lepton_jax.parallel.prediction.windows import PRODUCTS


class Spans(Leaves):
    """The arrays of a program, step by step."""

    def __init__(self, graph: Graph, walked: Walked, mesh: MeshSpec) -> None:
        super().__init__(graph, walked, mesh)
        self._narrowing = Narrowing(self, self._fusing.made_of)
        self._follow(graph)

    def _follow(self, graph: Graph) -> None:
        for value in graph.inputs:
            if value.uses:
                self.of[value] = self.span(self.size(value))
                self.of[value].argument = self.of[value].given = True
        self._fusing.keep(graph.outputs)
        for node in self._sending.apart:  # a loop over parts reads whole operands
            operands: Iterable[Value] = node.operands
            if node in self._lanes.loops:
                operands = [named(value) for value in operands if not is_spread(value)]
            self._fusing.keep(v for v in operands if v.node is not None and v.node.op in FUSED)
        self._graph(graph)
        self._catch_up(list(self._later))
        self.step(None)
        self._join()
        self._lookups.settle()
        for value in graph.outputs:
            if value in self.of:
                self.of[value].given = True
        if not self._sending.apart:
            reorder(self, self._gathered)
        for before, after in self._replaced:
            if before.last == after.born and not before.given:
                after.born += 1

    def _graph(self, graph: Graph) -> None:
        nodes = ordered(graph, self.size) if self.mesh.chip.name in ONCE else list(graph)
        if self.tiled and any(node.op in LOOPS for node in nodes):
            nodes = behind_loops(nodes, self._made, self.size)
        self._fusing.enter(nodes)
        for node in nodes:
            if not node.regions:
                self._leaf(node)
            elif node.op in RUN_ONCE:
                self._call(node)
            else:
                self._holder(node)

    def _call(self, node: Node) -> None:
        for slot in slots(node):
            for region, index in slot.inputs:
                if slot.operand is not None:
                    self._fusing.same[node.regions[region].inputs[index]] = node.operands[slot.operand]
            for region, index in slot.outputs:
                if slot.result is not None:
                    self._fusing.same[node.results[slot.result]] = node.regions[region].outputs[index]
        for graph in node.regions:
            self._graph(graph)

    def _holder(self, node: Node) -> None:
        """A loop or a choice: its results are there from its beginning, what it reads to its end."""
        begin = self.step(node)
        for value in node.operands:
            self._read(value, begin)
        self._results(node)
        later, self._later = self._later, {}
        left, self._left = self._left, []
        self._inside.append({})
        for slot in slots(node):
            self._enter(node, slot)
        narrow = self._narrowing.before(node) if self.tiled and node.op in LOOPS else []
        carried = node.params["num_carry"] if node.op == "scan" else None
        if node.op in LOOPS:
            self.enter_loop(begin)
        for region in node.regions:
            self._fusing.keep(region.outputs[:carried])
            self._graph(region)
        self._catch_up(list(self._later))
        if node.op in LOOPS:
            self.leave_loop()
        end, self._later, self._left = self.step(None), later, left
        for each in narrow:
            each.reads.append(end)
        self._looped.update(node.results)
        for value in (value for region in node.regions for value in region.outputs):
            if value in self.of:
                self.of[value].reads.append(end)
                # What is made by elements is written over what is carried.
                self.of[value].given |= node.op in LOOPS and self.of[value].shares
        for root in self._inside.pop():
            span = self.of.get(root)
            if span is not None and (span.born < begin or span.given):
                span.reads.append(end)

    def _results(self, node: Node) -> None:
        again = repeated(node)
        for value in node.results:
            if value in again and self.layout(value) == self.layout(again[value]):
                self._fusing.same[value] = again[value]
            else:
                self.of[value] = self.span(self.size(value))

    def _enter(self, node: Node, slot: Slot) -> None:
        if slot.operand is None:
            return
        outside = node.operands[slot.operand]
        for region, index in slot.inputs:
            inside = node.regions[region].inputs[index]
            if slot.kind in ("constant", "argument"):
                self._fusing.same[inside] = outside
            elif slot.kind == "carry" and slot.result is not None:
                self.of[inside] = self.of[node.results[slot.result]]
                if outside in self.of:
                    self._replaced.append((self.of[outside], self.of[inside]))
            elif slot.kind == "scanned":
                self._inside[-1].update(dict.fromkeys(self._fusing.made_of(outside)))
                if any(reader.op in PRODUCTS for reader, _ in inside.uses):
                    self._sliced.add(inside)
