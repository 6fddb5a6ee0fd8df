"""The bytes that a program needs on one device, from when its arrays are made and last read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.events import Walked
from lepton_jax.parallel.prediction.onchip import on_chip, placed, together
from lepton_jax.parallel.prediction.spans import Spans


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device.

    Attributes:
        arguments: of the inputs.
        outputs: of the outputs, those that take the place of donated inputs not counted.
        temporaries: of everything else, when most is there.
        peak: of all, when most is there.
        where: the node that runs then.
        alive: the arrays that are there then besides inputs and outputs.
    """

    arguments: int
    outputs: int
    temporaries: int
    peak: int
    where: Node | None
    alive: tuple[Value, ...] = ()


def memory_of(graph: Graph, walked: Walked, mesh: MeshSpec, donated: Collection[int] = ()) -> Memory:
    """What a program needs.

    Args:
        graph: the program.
        walked: how its arrays lie, and what is gathered.
        mesh: the mesh.
        donated: the positions of the inputs whose memory the outputs may take.
    """
    spans = Spans(graph, walked, mesh)
    arguments = sum(spans.size(value) for value in graph.inputs if value.uses)
    free = [(graph.inputs[i].shape, graph.inputs[i].dtype, spans.layout(graph.inputs[i])) for i in donated]
    outputs = 0
    for value in dict.fromkeys(graph.outputs):
        key = value.shape, value.dtype, spans.layout(value)
        if key in free:
            free.remove(key)
        elif not value.is_const:
            outputs += spans.size(value)
    capacity = on_chip(mesh.chip.name)
    load = placed(spans, capacity) if capacity else together(spans)
    there = set(load.spans)
    alive = tuple(value for value, span in spans.of.items() if span in there and not span.given)
    peak = arguments + outputs + load.bytes
    return Memory(arguments, outputs, load.bytes, peak, spans.nodes[load.step], alive)
