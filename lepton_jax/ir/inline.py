"""Writing a called graph into its caller."""

from __future__ import annotations

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import CALLS


def is_plain_call(node: Node) -> bool:
    """Whether a node only calls its region: no shardings, donation or compiler options."""
    if node.op not in CALLS or len(node.regions) != 1:
        return False
    return node.op != "jit" or _jax.jit_is_plain(node.params)


def inline_call(node: Node) -> None:
    """Put the nodes of a call's region in its place. The name stack keeps the function's name."""
    graph = node.graph
    assert graph is not None
    (region,) = node.regions
    name = f"jit({node.params['name']})" if node.op == "jit" else None
    stacks: dict[int, object] = {}

    def placed(source: object) -> object:
        known = stacks.get(id(source))
        if known is None:
            known = stacks[id(source)] = _jax.inlined_source(source, node.source, name)
        return known

    outputs = copy_into(region, node.operands, graph, node)
    end = node.prev
    fresh = end
    for _ in range(sum(1 for _ in region)):
        assert fresh is not None
        if fresh.source is not None and node.source is not None:
            fresh.source = placed(fresh.source)
        fresh.rule = node.rule
        fresh = fresh.prev
    for old, new in zip(node.results, outputs, strict=True):
        old.replace_uses(new)
    graph.erase(node)


def copy_into(region: Graph, args: list[Value], graph: Graph, before: Node) -> list[Value]:
    """Copy a graph's nodes before a node of another; returns the region's outputs there.

    Regions of the copied nodes are copied too, but shared calls stay shared.
    """
    env: dict[Value, Value] = dict(zip(region.inputs, args, strict=True))

    def read(value: Value) -> Value:
        return value if value.is_const else env[value]

    for node in region:
        copy = copy_node(node, [read(value) for value in node.operands])
        graph.insert(copy, before)
        env.update(zip(node.results, copy.results, strict=True))
    return [read(value) for value in region.outputs]


def copy_node(node: Node, operands: list[Value]) -> Node:
    """The same operation on other operands."""
    regions = [region if node.op == "jit" else copy_graph(region) for region in node.regions]
    return Node(
        node.op,
        node.primitive,
        operands,
        [value.aval for value in node.results],
        node.params,
        regions=regions,
        raw=node.raw,
        source=node.source,
        context=node.context,
        effects=node.effects,
        rule=node.rule,
    )


def copy_graph(graph: Graph) -> Graph:
    """An independent copy; it counts as untouched when the original does."""
    copy = Graph(graph.name, [value.aval for value in graph.inputs], graph.jaxpr)
    copy.set_outputs(copy_into(graph, copy.inputs, copy, copy.ret))
    if graph.version == graph.imported_at:
        copy.imported_at = copy.version
    return copy
