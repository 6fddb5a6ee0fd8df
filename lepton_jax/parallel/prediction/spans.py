"""When the arrays of a program are in memory: from when they are made to when they are last read.

A loop is followed once: what it reads of outside is there to its end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import LOOPS, Slot, slots
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.events import Walked
from lepton_jax.parallel.prediction.fusing import CALLS, FUSED, Fusing
from lepton_jax.parallel.prediction.lookups import Lookups
from lepton_jax.parallel.prediction.order import ordered
from lepton_jax.parallel.prediction.sending import Sending
from lepton_jax.parallel.prediction.sizes import local_bytes, row_bytes
from lepton_jax.parallel.prediction.span import Span
from lepton_jax.parallel.prediction.steps import OUTSIDE, Steps
from lepton_jax.parallel.prediction.windows import PRODUCTS

IN_PLACE: Final = frozenset(
    {"dynamic_update_slice", "scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max"}
)
"""What writes its result over its first operand where nobody else reads that."""

ONCE: Final = frozenset({"v5p"})
"""Chips for which XLA writes what is made of exponentials and several products read."""


class Spans(Steps):
    """The arrays of a program, step by step.

    Attributes:
        of: of each value that is written, its span.
    """

    def __init__(self, graph: Graph, walked: Walked, mesh: MeshSpec) -> None:
        super().__init__(walked, mesh)
        self.of: dict[Value, Span] = {}
        self._sending = Sending(walked)
        self._fusing = Fusing(
            self.size,
            {*self._sending.moved, *self._sending.sums},
            self.tiled,
            mesh.chip.name not in ONCE,
            mesh.chip.name in OUTSIDE,
            self._sending.apart,
        )
        self._copies: dict[Value, Span] = {}
        self._sliced: set[Value] = set()
        self._waiting: dict[Value, Span] = {}
        self._later: dict[Value, Node] = {}
        self._replaced: list[tuple[Span, Span]] = []
        self._inside: list[dict[Value, None]] = []
        self._outputs = set(graph.outputs)
        self._summed: set[Value] = set()
        self._looped: set[Value] = set()
        self._product = 0
        self._lookups = Lookups(self)
        self._follow(graph)

    def _follow(self, graph: Graph) -> None:
        for value in graph.inputs:
            if value.uses:
                self.of[value] = self.span(self.size(value))
                self.of[value].argument = self.of[value].given = True
        self._fusing.keep(graph.outputs)
        for node in self._sending.apart:  # a loop over parts reads whole operands
            self._fusing.keep(v for v in node.operands if v.node is not None and v.node.op in FUSED)
        self._graph(graph)
        self._catch_up(list(self._later))
        self.step(None)
        self._join()
        self._lookups.settle()
        for value in graph.outputs:
            if value in self.of:
                self.of[value].given = True
        for before, after in self._replaced:
            if before.last == after.born and not before.given:
                after.born += 1

    def _graph(self, graph: Graph) -> None:
        nodes = ordered(graph, self.size) if self.mesh.chip.name in ONCE else list(graph)
        self._fusing.enter(nodes)
        for node in nodes:
            if not node.regions:
                self._leaf(node)
            elif node.op in CALLS:
                self._call(node)
            else:
                self._holder(node)

    def _leaf(self, node: Node) -> None:
        for value in node.results:
            if value in self.walked.parts:
                self._summed.update(self._fusing.made_of(value))
        written = self._fusing.written(node)
        if any(self._in_parts(value) for value in written):
            self._later.update(dict.fromkeys(written, node))
        elif self._fusing.runs(node, written):
            self._run(node, written)

    def _in_parts(self, value: Value) -> int:
        """The bytes of a product's result that is scattered while it is made; 0 for others.

        It is made when it is needed: the gradients of weights after all that others wait for.
        """
        product = self._fusing.products.get(value, value.node)
        return 0 if product is None else self._sending.scattered.get(product, 0)

    def _catch_up(self, values: Collection[Value]) -> None:
        """Run what could wait."""
        for node in dict.fromkeys(self._later[value] for value in values):
            written = self._fusing.written(node)
            for value in written:
                del self._later[value]
            self._run(node, written)

    def _run(self, node: Node, written: Sequence[Value]) -> None:
        early = self._update(node, written)
        done = next((self._fusing.products[v] for v in written if v in self._fusing.products), node)
        step = early or self.step(done)
        copied = () if done is node else self._read_copies(done, step)
        for value in node.operands:
            copy = self._copy(value, node)
            if copy is None:
                self._read(value, step, copied)
            else:
                copy.reads.append(step)
        for value in written:
            self._make(value, node)
            self.of[value].born = early or self.of[value].born
            shares = self.of[value].shares = node.op in FUSED and value not in self._fusing.products
            self.of[value].outside &= not (shares or node.op.startswith("reduce_"))
        if node.op == "gather" and self.tiled:
            self._rows(node, step)
        if node.op in IN_PLACE and node.operands[0] in self.of and written:
            self._replaced.append((self.of[node.operands[0]], self.of[written[0]]))
        if done.op in PRODUCTS:
            self._product = step

    def _update(self, node: Node, written: Sequence[Value]) -> int:
        """The step in which an output is made: as soon as all that it is made of is there; 0 for others."""
        products = self._fusing.products
        if node.op not in FUSED or not all(v in self._outputs and v not in products for v in written):
            return 0
        roots = [root for value in node.operands for root in self._fusing.made_of(value)]
        if any(root in self._later or root in self._summed or root in self._looped for root in roots):
            return 0
        return max((self.of[root].born for root in roots if root in self.of), default=0)

    def _make(self, value: Value, node: Node) -> None:
        parts, moved = self.walked.parts.get(value), self._sending.moved.get(value)
        kind = "" if moved is None else moved.kind
        if parts is not None and kind != "collective-permute":
            self._waiting[value] = self.of[value] = self.span(local_bytes(value, parts, self.mesh))
            return
        if moved is not None and (kind == "reduce-scatter" or (kind == "all-reduce" and not self.tiled)):
            count = self.mesh.size(*moved.axes) if kind == "reduce-scatter" else 1
            self.span(count * self.size(value)).reads.append(self.step(node))
        part = self._in_parts(value)
        for _ in range(2 if part else 0):  # the loop adds up both ways round
            self.early(part).main = True
        self.of[value] = self.span(part or self.size(value))
        if self.tiled and node.op == "scatter-add" and value.ndim > 1:
            size = row_bytes(value, self.layout(value), self.mesh)
            if size > self.of[value].bytes:  # each row takes whole lanes; what is read is a copy without gaps
                self.of[value].bytes = size
                self.of[value].reads.append(self.step(None))
                self.of[value] = self.span(self.size(value))

    def _rows(self, node: Node, step: int) -> None:
        """Rows are looked up in a table."""
        table, *indices = node.operands
        roots = self._fusing.made_of(table)
        if table.ndim < 2 or not any(root in self.of and self.of[root].argument for root in roots):
            return
        layout = self._sending.gathers.get((indices[0], node)) or self.layout(indices[0])
        ids = layout.local_shape(indices[0].shape, self.mesh)[:-1]
        brought = any(map(self._sending.is_brought, indices))
        self._lookups.add(node, step, self.of[node.results[0]], ids, brought)

    def _join(self) -> None:
        """Sums that are joined at once wait for each other: parts and sums are there together.

        On TPUs a sum takes the place of its part; a processor joins the whole of what it then cuts.
        """
        step = len(self.nodes) - 1
        for value, parts in self._waiting.items():
            parts.reads.append(step)
            if self.tiled and parts.bytes == self.size(value):
                continue
            if self.mesh.chip.rates.platform == "cpu" and parts.bytes != self.size(value):
                self.span(parts.bytes)
            self.of[value] = self.span(self.size(value))
        self._waiting.clear()

    def _read_copies(self, product: Node, step: int) -> Collection[Value]:
        """Read the copies that a product reads within which others run; what they are copies of."""
        copied: set[Value] = set()
        for value in product.operands:
            copy = self._copy(value, product)
            if copy is not None:
                copy.reads.append(step)
                copied.update(self._fusing.made_of(value))
        return copied

    def _read(self, value: Value, step: int, copied: Collection[Value] = ()) -> None:
        """Read what a value is made of, but for that of which copies are read."""
        for root in self._fusing.made_of(value):
            if root in copied:
                continue
            if root in self._later:
                self._catch_up([root])
            if root in self._waiting:
                self._join()
            if root in self._sliced:
                self._sliced.remove(root)
                self.of[root] = self.span(self.size(root))
                self.of[root].born = self._product
            if root in self.of:
                self.of[root].reads.append(step)
                for inside in self._inside:
                    inside[root] = None

    def _copy(self, value: Value, node: Node) -> Span | None:
        """The copy of a value that a node reads, which lies as the node needs it.

        A TPU makes it while the product before runs.
        """
        layout = self._sending.gathers.get((value, node))
        if layout is None:
            return self._copies.get(value) if node.op in PRODUCTS else None
        made = self._copies[value] = self.span(local_bytes(value, layout, self.mesh))
        roots = [self.of[root].born for root in self._fusing.made_of(value) if root in self.of]
        if self.tiled:
            made.born = max(self._product, *roots, 0)
        self._read(value, made.born)
        return made

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
        for value in node.results:
            self.of[value] = self.span(self.size(value))
        later, self._later = self._later, {}
        self._inside.append({})
        for slot in slots(node):
            self._enter(node, slot)
        carried = node.params["num_carry"] if node.op == "scan" else None
        if node.op in LOOPS:
            self.enter_loop(begin)
        for region in node.regions:
            self._fusing.keep(region.outputs[:carried])
            self._graph(region)
        self._catch_up(list(self._later))
        if node.op in LOOPS:
            self.leave_loop()
        end, self._later = self.step(None), later
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
