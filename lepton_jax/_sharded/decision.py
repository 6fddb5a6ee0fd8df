"""How every array of a program lies, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import AnyMesh, MeshSpec
from lepton_jax.parallel.plan import Plan
from lepton_jax.parallel.roles import Roles

if TYPE_CHECKING:
    from lepton_jax.parallel.solver import Solution


@dataclass(frozen=True)
class Decision:
    """How every array of a program lies.

    Attributes:
        graph: the program, hints in it, without constraints.
        paths: what its inputs are called.
        roles: what they are.
        mesh: as planning sees it.
        assignment: of every value its layout.
        way: who decided: a preset's name, `auto`, `annotations`.
        notes: what the user should know.
        on: the mesh, as JAX has it.
        solution: what the solver found, where it was asked.
        microbatches: in how many parts the batch is computed.
        shares: how many shares of each sum over the batch are kept apart until the last part.
        gathered: which operands of the loop over parts are copies, gathered before it.
    """

    graph: Graph
    paths: tuple[str, ...]
    roles: Roles
    mesh: MeshSpec
    assignment: Mapping[Value, Layout]
    way: str
    notes: tuple[str, ...] = ()
    on: AnyMesh | None = None
    solution: Solution | None = None
    microbatches: int = 1
    shares: int = 1
    gathered: tuple[int, ...] = ()

    def inputs(self) -> list[Layout]:
        """The layouts of the inputs."""
        return [self._layout(value) for value in self.graph.inputs]

    def outputs(self) -> list[Layout]:
        """The layouts of the outputs; what is an input's next value lies as that input."""
        found = [self._layout(value) for value in self.graph.outputs]
        for i, o in self.roles.returned.items():
            if self.graph.inputs[i].shape == self.graph.outputs[o].shape:
                found[o] = self._layout(self.graph.inputs[i])
        return found

    def _layout(self, value: Value) -> Layout:
        return self.assignment.get(value, Layout.whole(value.ndim)).complete()

    def plan(self, donated: Collection[int] = ()) -> Plan:
        """What the user sees of it, with predicted collectives, times and memory.

        Args:
            donated: the positions of inputs that may be overwritten.
        """
        from lepton_jax.parallel.prediction import predict

        predicted = predict(self.graph, self.assignment, self.mesh, donated)
        return Plan.of(
            self.graph,
            self.paths,
            self.assignment,
            self.mesh,
            predicted,
            way=self.way,
            roles=self.roles,
            notes=self.notes,
            microbatches=self.microbatches,
            shares=self.shares,
            gathered=self.gathered,
        )
