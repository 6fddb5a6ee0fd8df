"""What a smaller program would cost, without tracing it."""

from __future__ import annotations

from lepton_jax.ir.cost import Cost, graph_cost
from lepton_jax.ir.cutting.cut import Cut
from lepton_jax.ir.cutting.rules import scan_length
from lepton_jax.ir.graph import Graph, Node, Value, constant


def cut_cost(graph: Graph, cut: Cut) -> Cost:
    """The cost of a graph of which only a part is kept; what picks elements of constants is not counted."""
    return graph_cost(_outline(graph, cut))


def _outline(graph: Graph, cut: Cut) -> Graph:
    """A graph with the smaller shapes, to read costs from: it cannot run."""
    outline = Graph(graph.name, [cut.aval(value) for value in graph.inputs])
    env: dict[Value, Value] = dict(zip(graph.inputs, outline.inputs, strict=True))

    def read(value: Value) -> Value:
        return constant(value.const, cut.aval(value)) if value.is_const else env[value]

    for node in graph:
        smaller = Node(
            node.op,
            node.primitive,
            [read(value) for value in node.operands],
            [cut.aval(value) for value in node.results],
            node.params if node.op != "scan" else {**node.params, "length": scan_length(node, cut)},
            regions=[_outline(region, cut) for region in node.regions],
        )
        outline.append(smaller)
        env.update(zip(node.results, smaller.results, strict=True))
    outline.set_outputs([read(value) for value in graph.outputs])
    return outline
