"""The order of nodes after a rewrite."""

from __future__ import annotations

from lepton_jax.ir.graph import Graph, Node


def sort(graph: Graph) -> None:
    """Put nodes after those that make what they read, and otherwise leave them in order."""
    done: set[Node] = set()
    order: list[Node] = []
    for root in list(graph):
        stack = [root]
        while stack:
            node = stack[-1]
            missing = [
                v.node
                for v in node.operands
                if v.node is not None and v.node not in done and v.node.graph is graph
            ]
            if node in done or not missing:
                stack.pop()
                if node not in done:
                    done.add(node)
                    order.append(node)
            else:
                stack += missing
    for node in order:
        graph.move(node, graph.ret)
