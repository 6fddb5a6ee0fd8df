"""The bytes that a program needs on one device, from when its arrays are made and last read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import slots
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
    free: dict[tuple[Any, ...], list[Value]] = {}
    for i in donated:
        free.setdefault(_kind(graph.inputs[i], spans), []).append(graph.inputs[i])
    outputs = 0
    for value in dict.fromkeys(graph.outputs):
        if taken := free.get(_kind(value, spans)):
            if _is_read_meanwhile(value, taken):
                spans.of[value].given = False
            taken.pop()
        elif not value.is_const:
            outputs += spans.size(value)
    capacity = on_chip(mesh.chip.name)
    load = placed(spans, capacity) if capacity else together(spans)
    there = set(load.spans)
    alive = tuple(value for value, span in spans.of.items() if span in there and not span.given)
    peak = arguments + outputs + load.bytes
    return Memory(arguments, outputs, load.bytes, peak, spans.nodes[load.step], alive)


def _kind(value: Value, spans: Spans) -> tuple[Any, ...]:
    """What two arrays have in common of which one may take the memory of the other."""
    return value.shape, value.dtype, spans.layout(value)


def _is_read_meanwhile(value: Value, inputs: Collection[Value]) -> bool:
    """Whether a loop stacks an array up while it takes rows out of one of these: both are there then."""
    node = value.node
    if node is None or node.op != "scan":
        return False
    stacked = scanned = False
    for slot in slots(node):
        if slot.kind == "stacked" and slot.result is not None:
            stacked |= node.results[slot.result] is value
        elif slot.kind == "scanned" and slot.operand is not None:
            scanned |= node.operands[slot.operand] in inputs
    return stacked and scanned
