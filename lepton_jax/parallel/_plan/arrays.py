"""The arrays of a program as a plan shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lepton_jax.ir.cost import bytes_of
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel._plan.identity import as_array
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec


@dataclass(frozen=True)
class Planned:
    """One array of a program, or several alike.

    Attributes:
        name: the path of an input; of others the scope and operation that make them.
        kind: `param`, `state`, `batch`, `other`, or `activation`.
        shape: of all of it.
        dtype: as `float32`.
        layout: how it lies.
        bytes: of all of it.
        local: bytes of one device's part.
        count: how many are so: of this scope, operation, shape and layout.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    bytes: int
    local: int
    count: int = 1


def planned(
    name: str, kind: str, value: Value, assignment: Mapping[Value, Layout], mesh: MeshSpec
) -> Planned:
    """One array as it lies; values that are not in the assignment are whole."""
    layout = assignment.get(value, Layout.whole(value.ndim))
    local = layout.local_bytes(value.aval, mesh) if as_array(value) else 0
    return Planned(name, kind, tuple(value.shape), str(value.dtype), layout, int(bytes_of(value)), local)


def activations(graph: Graph, assignment: Mapping[Value, Layout], mesh: MeshSpec, most: int) -> list[Planned]:
    """The largest arrays that the program makes, those alike in one line, in program order."""
    counts: Counter[Planned] = Counter()
    for each in graph.graphs():
        for node in each:
            if node.regions:
                continue
            where = f"{node.scope}/{node.op}" if node.scope else node.op
            counts.update(
                planned(where, "activation", value, assignment, mesh)
                for value in node.results
                if as_array(value) and value.ndim
            )
    largest = sorted(counts, key=lambda each: -each.bytes)[:most]
    kept = set(largest)
    return [replace(each, count=counts[each]) for each in counts if each in kept]
