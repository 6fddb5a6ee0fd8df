"""What single operations write to memory and read of it, in the order of a program."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.elements import FUSED, RENAMED
from lepton_jax.parallel.prediction.events import Walked
from lepton_jax.parallel.prediction.fusing import Fusing
from lepton_jax.parallel.prediction.lanes import Lanes
from lepton_jax.parallel.prediction.laying import Laying
from lepton_jax.parallel.prediction.lookups import Lookups
from lepton_jax.parallel.prediction.sending import Sending
from lepton_jax.parallel.prediction.sizes import local_bytes, row_bytes
from lepton_jax.parallel.prediction.span import Span
from lepton_jax.parallel.prediction.steps import OUTSIDE, Steps
from lepton_jax.parallel.prediction.windows import PRODUCTS, is_plain

IN_PLACE: Final = frozenset(
    {"dynamic_update_slice", "scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max"}
)
"""What writes its result over its first operand where nobody else reads that."""

ONCE: Final = frozenset({"v5p"})
"""Chips for which XLA writes what is made of exponentials and several products read."""

SCATTERS_AT_ONCE: Final = frozenset({"v5p"})
"""Chips that scatter parts of a gradient as soon as they are made. On v5e gathers run within the products
that follow, and scattering waits for the last of them."""


class Leaves(Steps):
    """The arrays that operations without regions make.

    Attributes:
        of: of each value that is written, its span.
    """

    def __init__(self, graph: Graph, walked: Walked, mesh: MeshSpec) -> None:
        super().__init__(walked, mesh)
        self.of: dict[Value, Span] = {}
        self._sending = Sending(walked, mesh)
        self._fusing = Fusing(
            self.size,
            {*self._sending.moved, *self._sending.sums},
            self.tiled,
            mesh.chip.name not in ONCE,
            mesh.chip.name in OUTSIDE,
            self._sending.apart,
        )
        self._lanes = Lanes(graph.inputs, walked, mesh, self._sending, self._fusing.same)
        self._fusing.loops = {node for node in self._lanes.loops if node not in self._sending.scattered}
        self._left: list[Node] = []
        self._ran: set[Value] = set()
        self._laying = Laying(self, self._lanes, self._fusing.made_of, self._read, self._sending.gathers)
        self._copies: dict[Value, Span] = {}
        self._gathered: dict[Span, list[Span]] = {}
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

    def parts(self, node: Node) -> int:
        """In how many parts a product is computed, by a loop; 1 for others."""
        sent = self._sending.apart.get(node)
        return 1 if sent is None else self.mesh.size(*sent.axes)

    def adds_parts(self, node: Node) -> bool:
        """Whether a loop adds up the parts of a product's result, and scatters them; not of convolutions."""
        return node.op == "dot_general" and node in self._sending.scattered

    def waste(self, node: Node) -> float:
        """How many times longer a node computes than if it used all lanes, as far as parts of it do not."""
        loop = self._lanes.loops.get(node)
        return 1.0 if loop is None else loop.waste

    def _made(self, node: Node) -> int:
        """The bytes that a node makes: of parts of sums those of the parts."""
        lies = self.walked.parts
        return sum(
            local_bytes(value, lies[value], self.mesh) if value in lies else self.size(value)
            for value in node.results
        )

    def _leaf(self, node: Node) -> None:
        for value in node.results:
            if value in self.walked.parts:
                self._summed.update(self._fusing.made_of(value))
        written = self._fusing.written(node)
        if self._lanes.at_once and node in self._lanes.scattered:
            self._left.append(node)
        if node in self._lanes.at_once:
            self._run_loops(node)
        elif not self._ran.isdisjoint(written):
            return  # it ran within a loop
        elif any(self._in_parts(value) for value in written):
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
        for value in values:
            product = self._fusing.products.get(value, value.node)
            if value in self._later and product in self._left:
                self._run_loops(product)
            elif value in self._later:
                node = self._later[value]
                written = self._fusing.written(node)
                for each in written:
                    del self._later[each]
                self._run(node, written)

    def _run_loops(self, last: Node) -> None:
        """Run the loops that scatter gradients of kernels, in the order of the program, to this one."""
        for loop in self._left:
            self._laying.before(loop, ahead=True)
        count = self._left.index(last) + 1
        now, self._left = self._left[:count], self._left[count:]
        for loop in now:
            ends = [end for end, product in self._fusing.products.items() if product is loop]
            ends = ends or list(loop.results)
            for each in ends:
                self._later.pop(each, None)
            self._ran.update(ends)
            self._run(ends[0].node or loop, ends)

    def _run(self, node: Node, written: Sequence[Value]) -> None:
        early = self._update(node, written)
        done = next((self._fusing.products[v] for v in written if v in self._fusing.products), node)
        laid = self._laying.before(done)
        step = early or self.step(done)
        if work := self._lanes.work(done):
            self.span(work).reads.append(step)
        copied = self._laying.read(laid, step)
        if done is not node:
            copied |= self._read_copies(done, step)
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
            inside = shares and not (self.of[value].outside and self._fusing.is_alone(value))
            self.of[value].outside &= not (inside or node.op.startswith("reduce_"))
            if done is not node and is_plain(done):
                self.of[value].over = self._beside(done, node, self.of[value].bytes)
            if self.mesh.chip.name in SCATTERS_AT_ONCE and value in self._sending.halfway:
                self._scatter(value, node)
        if node.op == "gather" and self.tiled:
            self._rows(node, step)
        if node.op in IN_PLACE and node.operands[0] in self.of and written:
            self._replaced.append((self.of[node.operands[0]], self.of[written[0]]))
        if done.op in PRODUCTS:
            self._product = step

    def _beside(self, product: Node, node: Node, size: int) -> tuple[Span, ...]:
        """The arrays of so many bytes that a product does not multiply, but a node within it reads."""
        multiplied = {root for value in product.operands for root in self._fusing.made_of(value)}
        roots = {root for value in node.operands for root in self._fusing.made_of(value)} - multiplied
        found = (self.of[root] for root in roots if root in self.of)
        return tuple(each for each in found if self.tiled and each.bytes == size)

    def _scatter(self, value: Value, node: Node) -> None:
        """Scatter parts of a sum over the first axes; what waits to be added up over the others is less."""
        parts = self.of[value]
        parts.reads.append(self.step(node))
        self.of[value] = self.span(parts.bytes // self.mesh.size(*self._sending.halfway[value]))
        if value in self._waiting:
            self._waiting[value] = self.of[value]

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
        make = self.early if self._lanes.adds_up(node) else self.span
        self.of[value] = make(part or self.size(value))
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
        if table.node is not None and table.node.op not in RENAMED and roots and table not in roots:
            self.span(self.size(table)).reads.append(step)  # it is not made within a look-up
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

    def _read_copies(self, product: Node, step: int) -> set[Value]:
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

    def _size(self, value: Value) -> int:
        tile = None if value.node is None else self._lanes.of(value)
        return super()._size(value) if tile is None else self._lanes.size(value, tile)

    def _copy(self, value: Value, node: Node) -> Span | None:
        """The copy of a value that a node reads, which lies as the node needs it.

        A TPU makes it while the product before runs.
        """
        layout = self._sending.gathers.get((value, node))
        if layout is None:
            return self._copies.get(value) if node.op in PRODUCTS else None
        made = self._copies[value] = self.span(local_bytes(value, layout, self.mesh))
        roots = [self.of[root] for root in self._fusing.made_of(value) if root in self.of]
        self._gathered[made] = roots
        if self.tiled:
            made.born = max(self._product, *(root.born for root in roots), 0)
        self._read(value, made.born)
        return made
