"""Calls written into their callers, so that every array of a program is one value of its graph."""

from __future__ import annotations

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.inline import inline_call, is_plain_call


def inline_calls(graph: Graph) -> Graph:
    """Write every plain call into its caller, in regions too; returns the graph, which is edited.

    Two calls of one function share its graph, yet may be cut differently. Nodes of a library's function
    get the line of the user's call.
    """
    while calls := [node for node in graph.nodes() if is_plain_call(node)]:
        for node in calls:
            if node.alive:
                _inline(node)
    return graph


def _inline(call: Node) -> None:
    before, after = call.prev, call.next
    inline_call(call)
    assert before is not None
    node = before.next
    while node is not after and node is not None:
        if node.source is not None and call.source is not None and not _jax.summarize(node.source):
            node.source = node.source.replace(traceback=call.source.traceback)
        node = node.next
