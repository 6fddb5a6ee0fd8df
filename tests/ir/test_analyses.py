from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.analyses import Analyses
from lepton_jax.ir.binding import binding_time
from lepton_jax.ir.graph import Graph


class Counted:
    """An analysis that counts how often it runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: Graph, scale: int = 1) -> int:
        self.runs += 1
        return graph.num_nodes() * scale


def example() -> Graph:
    return trace(lambda x: lax.cond(x > 0, jnp.sin, jnp.cos, x) + 1, 1.0)


def test_an_analysis_runs_once_for_each_state_of_a_graph() -> None:
    graph, analyses, count = example(), Analyses(), Counted()
    assert analyses.get(count, graph) == analyses.get(count, graph)
    assert count.runs == 1
    graph.set_outputs(graph.outputs)
    analyses.get(count, graph)
    assert count.runs == 2


def test_changes_of_regions_count() -> None:
    graph, analyses, count = example(), Analyses(), Counted()
    analyses.get(count, graph)
    region = next(node for node in graph if node.op == "cond").regions[1]
    region.set_outputs(region.inputs)
    analyses.get(count, graph)
    assert count.runs == 2


def test_arguments_and_graphs_are_told_apart() -> None:
    graph, other, analyses, count = example(), example(), Analyses(), Counted()
    nodes = graph.num_nodes()
    assert analyses.get(count, graph, 2) == 2 * nodes
    assert analyses.get(count, graph, 3) == 3 * nodes
    assert analyses.get(count, graph, scale=4) == 4 * nodes
    assert analyses.get(count, other, 2) == 2 * nodes
    assert analyses.get(count, graph, 2) == 2 * nodes
    assert count.runs == 4


def test_everything_can_be_forgotten() -> None:
    graph, analyses, count = example(), Analyses(), Counted()
    analyses.get(count, graph)
    analyses.invalidate()
    analyses.get(count, graph)
    assert count.runs == 2


def test_real_analyses() -> None:
    graph, analyses = example(), Analyses()
    early = analyses.get(binding_time, graph, (0,))
    assert analyses.get(binding_time, graph, (0,)) is early
    assert graph.outputs[0] in early
    assert graph.outputs[0] not in analyses.get(binding_time, graph, ())
