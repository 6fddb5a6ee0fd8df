"""What is in memory when most is: a limit on the layouts of all that is there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.memory import ENOUGH, FUSED
from lepton_jax.parallel.solver.model import Model
from lepton_jax.parallel.solver.problem import Floats, Row


def limit(
    graph: Graph,
    where: Node | None,
    model: Model,
    chosen: Sequence[int],
    most: float,
    reused: Collection[Value] = (),
    pieces: int = 1,
) -> Row:
    """The limit on what is in memory while a node runs.

    Args:
        graph: the program.
        where: the node; None for inputs and outputs alone.
        model: whose labels it limits.
        chosen: labels with which it is found out what is written down and what is made again.
        most: bytes per device.
        reused: outputs that take the memory of inputs.
        pieces: into how many micro-batches the batch is cut: what has no parameter's dimensions is so much
            smaller.
    """
    lies = {value: model.layout(number, chosen).complete() for value, number in model.flat.numbers.items()}
    inputs = [value for value in graph.inputs if value.uses]
    outputs = [value for value in dict.fromkeys(graph.outputs) if value not in reused and not value.is_const]
    alive = [] if where is None else list(_Life(lies, model.mesh).alive(graph, where))
    states = {
        model.of_value[model.flat.numbers[value]]
        for value in inputs
        if model.flat.numbers[value] in model.of_value
    }
    needs: dict[int, Floats] = {}
    fixed = 0.0
    for value in dict.fromkeys((*inputs, *outputs, *(each for each in alive if each not in reused))):
        number = model.flat.numbers[value]
        cluster = model.of_value.get(number)
        if cluster is None:
            fixed += (
                Layout.whole(value.ndim).local_bytes(value.aval, model.mesh) if value.dtype is not None else 0
            )
            continue
        small = 1 if cluster in states or value in inputs else pieces
        lists = model.layouts(number)
        sizes = np.array([each.local_bytes(value.aval, model.mesh) / small for each in lists.distinct])
        variable = model.variable[cluster]
        needs[variable] = needs.get(variable, 0.0) + sizes[lists.index]
    return Row(needs, most - fixed, "memory")


class _Life:
    """Which arrays are in memory: those that are not made again from about as few bytes by who reads them."""

    def __init__(self, lies: Mapping[Value, Layout], mesh: MeshSpec) -> None:
        self.lies = lies
        self.mesh = mesh
        self._roots: dict[Value, tuple[Value, ...]] = {}

    def size(self, value: Value) -> int:
        if value.is_const or value.dtype is None:
            return 0
        return self.lies[value].local_bytes(value.aval, self.mesh)

    def roots(self, value: Value) -> tuple[Value, ...]:
        """The arrays in memory from which a value is read."""
        if value.is_const:
            return ()
        if value not in self._roots:
            self._roots[value] = self._found(value)
        return self._roots[value]

    def _found(self, value: Value) -> tuple[Value, ...]:
        node = value.node
        if node is None or node.op not in FUSED:
            return (value,)
        found = dict.fromkeys(root for operand in node.operands for root in self.roots(operand))
        return (value,) if sum(map(self.size, found)) > ENOUGH * self.size(value) > 0 else tuple(found)

    def alive(self, graph: Graph, where: Node) -> Iterable[Value]:
        """The arrays made by nodes that are there while a node runs, at each level of regions."""
        node = where
        while True:
            level = node.graph
            assert level is not None
            yield from self._level(level, node)
            if level is graph or not level.parents:
                return
            node = level.parents[0]

    def _level(self, graph: Graph, until: Node) -> Iterable[Value]:
        kept = set(graph.outputs)
        for value in kept:
            self._roots[value] = () if value.is_const else (value,)
        read = {node: {r for value in node.operands for r in self.roots(value)} for node in graph}
        made = {value for node in graph for value in node.results if self.roots(value) == (value,)}
        runs = [
            node for node in graph if node.op not in FUSED or any(value in made for value in node.results)
        ]
        last = {value: node for node in runs for value in read[node]}
        found: dict[Value, None] = {}
        for node in runs:
            found.update((v, None) for v in node.results if v in made and (v in last or v in kept))
            if node is until:
                break
            for value in read[node]:
                if last[value] is node and value not in kept:
                    found.pop(value, None)
        return found
