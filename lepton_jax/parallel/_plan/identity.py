"""For which program and which mesh a plan was made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.ir.printer import aval_text
from lepton_jax.parallel.meshes import MeshSpec

_MOST_SHOWN = 4


class PlanError(ValueError):
    """A plan is for another mesh or another program, or its file is none; the message says what differs."""


@dataclass(frozen=True)
class Program:
    """What a plan knows of the program it was made for.

    Attributes:
        inputs: path and type of each, as `("params/w", "float32[4,8]")`.
        operations: how many operations it has, those of loops once.
        hash: of its text.
        jax: the version of JAX that traced it; empty where that is not known.
    """

    inputs: tuple[tuple[str, str], ...]
    operations: int
    hash: str
    jax: str = field(default="", compare=False)

    @classmethod
    def of(cls, graph: Graph, paths: Sequence[str]) -> Program:
        """What a plan keeps of a graph."""
        kinds = (aval_text(value.aval) for value in graph.inputs)
        text = graph.to_text()
        digest = hashlib.sha256(text[text.index("(") :].encode()).hexdigest()[:16]
        return cls(tuple(zip(paths, kinds, strict=True)), graph.num_nodes(), digest, jax.__version__)

    @property
    def is_of_this_jax(self) -> bool:
        """Whether this version of JAX traced it, as far as is known."""
        return self.jax in ("", jax.__version__)

    def is_traced_otherwise(self, other: Program) -> bool:
        """Whether another has the same inputs, and another version of JAX traces it to other operations."""
        return self != other and self.inputs == other.inputs and "" != self.jax != other.jax

    def differences(self, other: Program) -> list[str]:
        """What is different in another program, in words; nothing if it is the same."""
        if self == other:
            return []
        mine, theirs = dict(self.inputs), dict(other.inputs)
        found = [f"{path} is not among its inputs any more" for path in mine if path not in theirs]
        found += [f"{path} {kind} is new" for path, kind in theirs.items() if path not in mine]
        found += [
            f"{path} was {kind} and is {theirs[path]}"
            for path, kind in mine.items()
            if path in theirs and theirs[path] != kind
        ]
        if found:
            rest = len(found) - _MOST_SHOWN
            return found[:_MOST_SHOWN] + ([f"{rest} more of its inputs differ"] if rest > 0 else [])
        if list(mine) != list(theirs):
            return ["its inputs come in another order"]
        if self.operations != other.operations:
            return [f"it had {self.operations} operations and has {other.operations}"]
        return ["its operations differ"]


def mesh_differences(planned: Mapping[str, int], chip: str, mesh: MeshSpec) -> list[str]:
    """What is different in another mesh, in words."""
    sizes = {axis.name: axis.size for axis in mesh.axes}
    found = [f"it has no axis {name!r}" for name in planned if name not in sizes]
    found += [f"its axis {name!r} is new" for name in sizes if name not in planned]
    found += [
        f"its axis {name!r} has {sizes[name]} devices, not {size}"
        for name, size in planned.items()
        if name in sizes and sizes[name] != size
    ]
    if not found and list(planned) != list(sizes):
        found.append(f"its axes come in the order {', '.join(sizes)}, not {', '.join(planned)}")
    if chip != mesh.chip.name:
        found.append(f"its devices are {mesh.chip.name}, not {chip}")
    return found


def all_values(graph: Graph) -> list[Value]:
    """Every value of a graph and its regions, in an order that is the same for the same program."""
    found: list[Value] = []
    queue = {graph: None}  # `Graph.graphs` goes by when nodes were made, which a copy does not keep
    for each in (waiting := [graph]):
        found += each.inputs
        for node in each:
            found += node.results
            fresh = [region for region in node.regions if region not in queue]
            queue.update(dict.fromkeys(fresh))
            waiting += dict.fromkeys(fresh)
    return found


def as_array(value: Any) -> bool:
    """Whether a value has a shape and a dtype of a known size."""
    return value.dtype is not None and hasattr(value.dtype, "itemsize")
