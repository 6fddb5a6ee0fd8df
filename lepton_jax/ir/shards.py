"""Programs on shards: the region of a `shard_map`, and what is traced for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from lepton_jax.ir.graph import Graph, Node

T = TypeVar("T")


def shard_maps_around(graph: Graph | None) -> list[Node]:
    """The `shard_map`s that a region stands in, outermost first."""
    found: list[Node] = []
    while graph is not None and graph.parents:
        node = graph.parents[0]
        if node.op == "shard_map":
            found.insert(0, node)
        graph = node.graph
    return found


def context_of(node: Node) -> tuple[Any, ...]:
    """What a trace in a `shard_map` depends on: hashable."""
    params = node.params
    return params["mesh"], params["newly_manual_axes"], params["check_vma"]


def axes_of_spec(spec: Any) -> frozenset[str]:
    """The mesh axes that a partition spec spreads an array over."""
    entries = ((entry,) if isinstance(entry, str) else entry for entry in spec if entry)
    return frozenset(axis for entry in entries for axis in entry)


def axes_over(node: Node) -> tuple[str, ...]:
    """The mesh axes over which a `shard_map` runs, in the mesh's order."""
    params = node.params
    return tuple(axis for axis in params["mesh"].axis_names if axis in params["newly_manual_axes"])


def inside_avals(node: Node, outside: Sequence[Any], specs: Sequence[Any]) -> list[Any]:
    """What arrays of some shapes, spread by some specs, are in the body of a `shard_map`."""
    found: list[Any] = []

    def body(*parts: Any) -> tuple[()]:
        found.extend(jax.typeof(part) for part in parts)
        return ()

    spread = jax.shard_map(body, in_specs=tuple(specs), out_specs=(), **on_shards(node))
    jax.make_jaxpr(spread)(*outside)
    return found


def on_shards(node: Node) -> Mapping[str, Any]:
    """What `jax.shard_map` is told, to be on the same shards as a node."""
    params = node.params
    return {
        "mesh": params["mesh"],
        "axis_names": set(params["newly_manual_axes"]),
        "check_vma": params["check_vma"],
    }


def traced_on_shards(trace: Callable[[], T], nodes: list[Node]) -> T:
    """What a function returns that is called while JAX traces the bodies of some `shard_map`s.

    JAX wants to know of each array over which axes it varies. A function that brings in arrays of its own has
    to be traced where its result is to stand.

    Args:
        trace: traces something, and returns it.
        nodes: the `shard_map`s, outermost first; none: it is called as it is.
    """
    if not nodes:
        return trace()
    found: list[T] = []

    def body() -> tuple[()]:
        found.append(traced_on_shards(trace, nodes[1:]))
        return ()

    jax.make_jaxpr(jax.shard_map(body, in_specs=(), out_specs=(), **on_shards(nodes[0])))()
    return found[0]
