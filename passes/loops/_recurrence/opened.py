"""Loops whose steps are checkpointed, without the checkpoints."""

from __future__ import annotations

from typing import Final

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import copy_node, inline_call

_CHECKPOINTS: Final = frozenset({"checkpoint", "remat2"})


def is_checkpointed(node: Node) -> bool:
    """Whether a loop's body has checkpoints."""
    return any(each.op in _CHECKPOINTS for each in node.regions[0])


def opened(node: Node, operands: list[Value]) -> Node:
    """A copy of a loop, in whose body checkpoints are written out.

    A checkpointed step keeps nothing for the gradient but its carry. A recurrence that is solved for
    all iterations at once has the coefficients of all of them in memory anyway.

    Args:
        operands: what the copy reads.
    """
    copy = copy_node(node, operands)
    while is_checkpointed(copy):
        inline_call(next(each for each in copy.regions[0] if each.op in _CHECKPOINTS))
    return copy


def on_its_own(node: Node) -> Node:
    """The same in a graph of its own, to look at."""
    graph = Graph("opened", [value.aval for value in node.operands])
    copy = opened(node, graph.inputs)
    graph.append(copy)
    return copy
