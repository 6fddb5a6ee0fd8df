"""A part of a loop's body as a function of its own, to be run for all iterations at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from lepton_jax.ir.export import evaluate
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import copy_node
from lepton_jax.ir.structure import graph_key


class Piece:
    """A hashable function of flat arrays: a graph that nobody edits any more.

    Pieces of the same structure are equal, so that traces of what is made of them are reused.

    Attributes:
        graph: what it computes.
    """

    __slots__ = ("_key", "graph")

    def __init__(self, graph: Graph) -> None:
        key = graph_key(graph)
        self.graph = graph
        self._key = graph if key is None else key

    def __call__(self, *args: Any) -> list[Any]:
        """Its outputs."""
        return evaluate(self.graph, args)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Piece) and bool(self._key == other._key)


def makers(values: Iterable[Value], stop: Callable[[Value], bool]) -> dict[Node, None]:
    """The nodes that values of a graph are made of, up to values at which to stop."""
    found: dict[Node, None] = {}
    stack = [v for v in values if not v.is_const and not stop(v)]
    while stack:
        node = stack.pop().node
        if node is None or node in found:
            continue
        found[node] = None
        stack += [v for v in node.operands if not v.is_const and not stop(v)]
    return found


def cut(
    body: Graph, outputs: Sequence[Value], stop: Callable[[Value], bool] = lambda value: False
) -> tuple[Piece, list[Value]]:
    """The function that makes some values of a body.

    Args:
        stop: whether a value is to be an argument of the function; inputs of the body always are.

    Returns:
        The function, and the values that it takes: of the body, and constant arrays.
    """
    needed = makers(outputs, stop)
    nodes = [node for node in body if node in needed]
    read = [*(v for node in nodes for v in node.operands), *outputs]
    leaves = list(dict.fromkeys(v for v in read if not _is_inside(v, needed)))
    graph = Graph("piece", [v.aval for v in leaves])
    env = dict(zip(leaves, graph.inputs, strict=True))
    for node in nodes:
        copy = copy_node(node, [env.get(v, v) for v in node.operands])
        graph.append(copy)
        env.update(zip(node.results, copy.results, strict=True))
    graph.set_outputs([env.get(v, v) for v in outputs])
    return Piece(graph), leaves


def _is_inside(value: Value, nodes: dict[Node, None]) -> bool:
    """Whether a function made of these nodes has a value in it; arrays are handed to it, numbers are not."""
    return value.literal if value.is_const else value.node in nodes


def once(*args: Any, piece: Piece) -> list[Any]:
    """A piece as it is."""
    return piece(*args)


def batched(*args: Any, piece: Piece, mapped: tuple[bool, ...], length: int) -> list[Any]:
    """A piece for all iterations at once: results are stacked along a new leading axis.

    Args:
        mapped: which arguments hold a value for each iteration.
    """
    axes = tuple(0 if each else None for each in mapped)
    return list(jax.vmap(piece, in_axes=axes, axis_size=length)(*args))
