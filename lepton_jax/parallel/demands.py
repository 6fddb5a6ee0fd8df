"""What nodes themselves say of layouts: the user's constraints, and `jax.shard_map`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec

Axes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """How a node wants an array to lie.

    Attributes:
        value: the array.
        dims: of each dimension its axes, or None where the node does not care.
    """

    value: Value
    dims: tuple[Axes | None, ...]


def demands(graphs: Iterable[Graph], closed: Iterable[Node], mesh: MeshSpec) -> Iterator[Demand]:
    """What the nodes of these graphs, and these nodes with regions of their own, say.

    What names axes that the mesh does not have, or does not divide, is left out.
    """
    for graph in graphs:
        for node in graph:
            if node.op == "sharding_constraint" and isinstance(node.params["sharding"], NamedSharding):
                spec = node.params["sharding"].spec
                yield from _demand(node.results[0], spec, node.params.get("unconstrained_dims", ()), mesh)
    for node in closed:
        inside, outside = node.params.get("in_specs"), node.params.get("out_specs")
        for value, spec in (
            zip(node.operands, inside, strict=True) if node.op == "shard_map" and inside else ()
        ):
            yield from _demand(value, spec, (), mesh)
        specs = outside if node.op == "shard_map" and outside else [PartitionSpec()] * len(node.results)
        for value, spec in zip(node.results, specs, strict=True):
            yield from _demand(value, spec, (), mesh)


def _demand(value: Value, spec: Any, free: Iterable[int], mesh: MeshSpec) -> Iterator[Demand]:
    free = set(free)
    entries = [None if each is PartitionSpec.UNCONSTRAINED else each for each in spec]
    layout = Layout.from_spec(entries, value.ndim)
    known = set(layout.axes) <= set(mesh.names)
    if value.ndim and value.is_static and known and layout.divides(value.shape, mesh):
        yield Demand(value, tuple(None if i in free else names for i, names in enumerate(layout.dims)))
