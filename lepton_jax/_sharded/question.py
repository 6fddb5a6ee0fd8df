"""What is asked of a program: how its arrays shall lie on a mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lepton_jax._sharded.naming import Leaf
from lepton_jax._sharded.request import OpenMesh, Spread
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.annotations import Spec
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import AnyMesh
from lepton_jax.parallel.roles import Roles


@dataclass(frozen=True)
class Carried:
    """What is known of the inputs of a program that takes prepared parameters.

    Attributes:
        specs: what the patterns say, by position.
        layouts: how prepared parameters lie since the user says how the parameters do, by position.
        notes: of what could not be kept.
    """

    specs: Mapping[int, Spec]
    layouts: Mapping[int, Layout] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A program, and what is said of it.

    Attributes:
        graph: the program; plain calls are inlined.
        leaves: what its inputs are called.
        arrays: the inputs, to see where they lie already.
        spread: what the user says.
        mesh: JAX's, or the devices of which one is to be made.
        params: the positions of inputs that the user calls parameters.
        carried: what the patterns say of the inputs, where some of these are prepared parameters.
        roles: of the inputs, where they are known already.
        pins: layouts of values of the program that hold whoever decides.
    """

    graph: Graph
    leaves: Sequence[Leaf]
    arrays: Sequence[Any]
    spread: Spread
    mesh: AnyMesh | OpenMesh
    params: frozenset[int] = frozenset()
    carried: Carried | None = None
    roles: Roles | None = None
    pins: Mapping[Value, Layout] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        """What the inputs are called, as text."""
        return tuple(leaf.path for leaf in self.leaves)
