"""What is in memory when most is: a limit on the layouts of all that is there."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.solver.model import Model
from lepton_jax.parallel.solver.problem import Floats, Row


def limit(
    graph: Graph,
    alive: Iterable[Value],
    model: Model,
    most: float,
    reused: Collection[Value] = (),
    pieces: int = 1,
) -> Row:
    """The limit on what is in memory when most is.

    Args:
        graph: the program.
        alive: the arrays that are there besides inputs and outputs, as `predict` gives them.
        model: whose labels it limits.
        most: bytes per device.
        reused: outputs that take the memory of inputs.
        pieces: into how many micro-batches the batch is cut: what has no parameter's dimensions is so much
            smaller.
    """
    inputs = [value for value in graph.inputs if value.uses]
    outputs = [value for value in dict.fromkeys(graph.outputs) if value not in reused and not value.is_const]
    states = {
        model.of_value[model.flat.numbers[value]]
        for value in inputs
        if model.flat.numbers[value] in model.of_value
    }
    needs: dict[int, Floats] = {}
    fixed = 0.0
    numbers = model.flat.numbers
    others = (each for each in alive if each in numbers and each not in reused)
    for value in dict.fromkeys((*inputs, *outputs, *others)):
        number = numbers[value]
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
