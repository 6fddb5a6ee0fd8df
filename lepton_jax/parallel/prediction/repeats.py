"""Arrays that a loop would stack up twice: XLA computes once what is computed twice, and stacks it once."""

from __future__ import annotations

from typing import Any

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import slots
from lepton_jax.ir.structure import node_key


def repeated(loop: Node) -> dict[Value, Value]:
    """The results of a loop that are the same stack as another of its results, and which."""
    found: dict[Value, Value] = {}
    first: dict[Value, Value] = {}
    stacks: dict[Value, Value] = {}
    for region in loop.regions if loop.op == "scan" else ():
        first |= _first(region)
    for slot in slots(loop) if first else ():
        if slot.kind != "stacked" or slot.result is None:
            continue
        ((which, index),) = slot.outputs
        made, result = loop.regions[which].outputs[index], loop.results[slot.result]
        same = stacks.setdefault(first.get(made, made), result)
        if same is not result:
            found[result] = same
    return found


def _first(graph: Graph) -> dict[Value, Value]:
    """Of values that are computed again, those that are the same and come first."""
    known: dict[Any, Node] = {}
    first: dict[Value, Value] = {}
    for node in graph:
        key = node_key(node, first)
        if key is not None and (before := known.setdefault(key, node)) is not node:
            first.update(zip(node.results, before.results, strict=True))
    return first
