"""Prediction: what a program costs on a mesh, from its graph and layouts, without compiling."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.combining import combined
from lepton_jax.parallel.prediction.events import Move as Move
from lepton_jax.parallel.prediction.memory import Memory as Memory
from lepton_jax.parallel.prediction.memory import memory_of
from lepton_jax.parallel.prediction.result import Prediction as Prediction
from lepton_jax.parallel.prediction.times import times_of
from lepton_jax.parallel.prediction.walk import walk


def predict(
    graph: Graph, assignment: Mapping[Value, Layout], mesh: MeshSpec, donated: Collection[int] = ()
) -> Prediction:
    """What a program costs on each device of a mesh whose arrays lie so.

    Collectives are those that XLA for TPUs writes; their bytes are those of its text, where a loop's body is
    counted as often as it runs. Times are a model of the chip's rates (`targets.chips`), to compare layouts
    with.

    Args:
        graph: the program, its plain calls inlined; it is not changed.
        assignment: how each of its values lies, as `propagate` gives it; values that are not named are whole.
        mesh: the mesh.
        donated: positions of the inputs whose memory outputs of the same shape, dtype and layout take.

    Raises:
        ValueError: a layout has another number of dimensions than its value, or names an axis that the mesh
            does not have.

    Example:
        >>> import jax
        >>> from lepton_jax.ir import trace
        >>> x, w = (jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((64, 32), (32, 16)))
        >>> graph = trace(lambda x, w: x @ w, x, w)
        >>> halves = {graph.inputs[0]: Layout(((), ("model",))), graph.inputs[1]: Layout((("model",), ()))}
        >>> predict(graph, halves, MeshSpec.of("model=2", chip="v5e")).bytes("all-reduce")
        2048
    """
    for value, layout in assignment.items():
        layout.check(value.shape, mesh, f"{value.dtype}{list(value.shape)}")
    found = walk(graph, assignment, mesh)
    memory = memory_of(graph, found, mesh, donated)
    moves = combined([event for event in found.events if isinstance(event, Move)])
    times = times_of(found, moves, mesh)
    return Prediction(
        mesh,
        tuple(moves),
        times.flops,
        times.compute,
        times.traffic,
        times.communication,
        times.exposed,
        memory.arguments,
        memory.outputs,
        memory.temporaries,
        memory.peak,
        memory.where,
        memory.alive,
    )
