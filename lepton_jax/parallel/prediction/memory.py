"""The bytes that a program needs on one device, from when its arrays are made and last read.

XLA fuses operations on elements into who reads them, so an array of which one other (or a bit more) is enough
to make it again takes no memory; whoever reads it reads that other. What joins several arrays is written
down.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import slots
from lepton_jax.parallel.factors.elementwise import ELEMENTWISE
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec

FUSED: Final = (ELEMENTWISE - {"optimization_barrier"}) | {
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "iota", "rev", "slice", "pad"),
    *("shard_hint", "sharding_constraint", "stop_gradient", "concatenate"),
}
ENOUGH: Final = 1.25
"""An array is made again where what it is made of is at most this many times as large."""


LANES, SUBLANES = 128, 8


@cache
def tiled_elements(shape: tuple[int, ...]) -> int:
    """How many elements an array takes in a TPU's memory, which holds tiles of 8 rows of 128.

    The two dimensions that the tiles cover are those that leave the least room unused.

    Example:
        >>> tiled_elements((512, 8, 64)), tiled_elements((64, 8, 64))
        (262144, 65536)
    """
    if len(shape) < 2 or 0 in shape:
        return math.prod(shape)
    whole = math.prod(shape)
    return min(
        whole // (lanes * rows) * (-(-lanes // LANES) * LANES) * _rows(rows)
        for i, lanes in enumerate(shape)
        for j, rows in enumerate(shape)
        if i != j
    )


def _rows(rows: int) -> int:
    """Rows of a tile that so many take: fewer than 8 take a smaller tile."""
    return -(-rows // SUBLANES) * SUBLANES if rows >= SUBLANES else 1 << (rows - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device.

    Attributes:
        arguments: of the inputs.
        outputs: of the outputs, those that take the place of donated inputs not counted.
        temporaries: of everything else, when most is there.
        peak: of all, when most is there.
        where: the node that runs then.
    """

    arguments: int
    outputs: int
    temporaries: int
    peak: int
    where: Node | None


def memory_of(
    graph: Graph,
    lies: Mapping[Value, Layout],
    copies: Mapping[Value, Collection[Layout]],
    mesh: MeshSpec,
    donated: Collection[int] = (),
    parts: Mapping[Value, Layout] = MappingProxyType({}),
) -> Memory:
    """What a program needs.

    Args:
        graph: the program.
        lies: how its arrays lie.
        copies: the layouts in which arrays are kept besides.
        mesh: the mesh.
        donated: the positions of the inputs whose memory the outputs may take.
        parts: of arrays that are sums before they are returned, how their parts lie: XLA joins many such sums
        at
            once, so their parts stay to the end.
    """
    run = _Memory(lies, copies, mesh, parts)
    arguments = sum(run.size(value) for value in graph.inputs if value.uses)
    free = [(graph.inputs[i].shape, graph.inputs[i].dtype, run.layout(graph.inputs[i])) for i in donated]
    outputs, reused = 0, set[Value]()
    for value in dict.fromkeys(graph.outputs):
        key = value.shape, value.dtype, run.layout(value)
        if key in free:
            free.remove(key)
            reused.add(value)
        elif not value.is_const:
            outputs += run.size(value)
    most, where = run.most(graph, reused)
    inner = max(most - outputs, 0)
    return Memory(arguments, outputs, inner, arguments + max(most, outputs), where)


class _Memory:
    def __init__(
        self,
        lies: Mapping[Value, Layout],
        copies: Mapping[Value, Collection[Layout]],
        mesh: MeshSpec,
        parts: Mapping[Value, Layout],
    ) -> None:
        self.parts = parts
        self.lies = lies
        self.copies = copies
        self.mesh = mesh
        self.roots: dict[Value, tuple[Value, ...]] = {}
        self.known: dict[Graph, int] = {}

    def layout(self, value: Value) -> Layout:
        return self.lies.get(value) or Layout.whole(value.ndim)

    def size(self, value: Value) -> int:
        """The bytes of one device's part."""
        if value.dtype is None or value.is_const:
            return 0
        return self.bytes(value, self.layout(value))

    def bytes(self, value: Value, layout: Layout) -> int:
        """The bytes of one device's part of a value that lies so."""
        shape = layout.local_shape(value.shape, self.mesh)
        if self.mesh.chip.rates.platform == "tpu":
            return tiled_elements(shape) * int(value.dtype.itemsize)
        return math.prod(shape) * int(value.dtype.itemsize)

    def made_of(self, value: Value) -> tuple[Value, ...]:
        """The arrays that are in memory from which a value is read: itself, or what it is made again from."""
        if value.is_const:
            return ()
        known = self.roots.get(value)
        if known is None:
            known = self.roots[value] = self._made_of(value)
        return known

    def _made_of(self, value: Value) -> tuple[Value, ...]:
        node = value.node
        if node is None or node.op not in FUSED:
            return (value,)
        found = dict.fromkeys(root for operand in node.operands for root in self.made_of(operand))
        size = self.size(value)
        if sum(map(self.size, found)) > ENOUGH * size and size > 0:
            return (value,)
        return tuple(found)

    def most(self, graph: Graph, elsewhere: Collection[Value] = ()) -> tuple[int, Node | None]:
        """The most bytes of arrays made in a graph that are there at once, and while which node runs.

        Args:
            graph: whose inputs are counted elsewhere.
            elsewhere: outputs whose memory is counted elsewhere.
        """
        for value in graph.outputs:
            self.roots[value] = () if value.is_const else (value,)
        sums = [value for value in self.parts if value.node is not None and value.node.graph is graph]
        kept = {*graph.outputs, *sums}
        runs = [node for node in graph if node.op not in FUSED or any(map(self.is_made, node.results))]
        read = {node: self.read_by(node) for node in runs}
        last = {value: node for node in runs for value in read[node]}
        first: set[Value] = set()
        held = most = 0
        where: Node | None = None
        for node in runs:
            freed = sum(
                self.size(value) * (value.node is not None and value not in kept) + self.copied(value)
                for value in read[node]
                if last[value] is node
            )
            made = sum(
                self.bytes(value, self.parts[value]) if value in self.parts else self.size(value)
                for value in node.results
                if (value not in elsewhere or value in self.parts)
                and self.is_made(value)
                and (value in last or value in kept)
            )
            fresh = [value for value in read[node] if value not in first]
            first.update(fresh)
            held += made + sum(map(self.copied, fresh))
            inner = max((self.extra(node, region) for region in node.regions), default=0)
            reused = min(freed, made) if node.op in FUSED or node.regions else 0
            if held + inner - reused > most:
                most, where = held + inner - reused, node
            held -= freed
        held += sum(self.size(value) for value in sums if value not in elsewhere)
        return max(most, held), where if most >= held else None

    def is_made(self, value: Value) -> bool:
        """Whether a value has memory of its own."""
        return self.made_of(value) == (value,)

    def read_by(self, node: Node) -> list[Value]:
        """The arrays in memory that a node reads."""
        return list(dict.fromkeys(root for value in node.operands for root in self.made_of(value)))

    def copied(self, value: Value) -> int:
        """The bytes of the copies of a value that lie otherwise than it."""
        return sum(self.bytes(value, layout) for layout in self.copies.get(value, ()))

    def extra(self, node: Node, region: Graph) -> int:
        """What running a region needs besides what goes in and comes out of its node."""
        if region not in self.known:
            outside = [
                region.outputs[i]
                for slot in slots(node)
                for r, i in slot.outputs
                if node.regions[r] is region
            ]
            loop = node.op in ("scan", "while")
            self.known[region] = self.most(region, () if loop else outside)[0]
        return self.known[region]
