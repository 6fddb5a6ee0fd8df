"""A decision for a program whose batch is computed in parts, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from lepton_jax._sharded.carrying import Carried
from lepton_jax._sharded.deciding import decide
from lepton_jax._sharded.decision import Decision
from lepton_jax._sharded.donating import next_values
from lepton_jax._sharded.naming import Leaf
from lepton_jax._sharded.request import SOLVE, OpenMesh, Spread
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.inline import copy_graph
from lepton_jax.parallel.meshes import AnyMesh
from lepton_jax.parallel.microbatches import MicrobatchError, batch_of, in_parts, nearest, parts_of
from lepton_jax.parallel.plan import Plan, PlanError
from lepton_jax.parallel.prediction import Prediction, predict
from lepton_jax.parallel.roles import Roles, roles_of

AUTO: Final = "auto"
Decide = Callable[[Graph, AnyMesh | OpenMesh], Decision]


def decide_in_rounds(
    graph: Graph,
    leaves: Sequence[Leaf],
    arrays: Sequence[Any],
    spread: Spread,
    mesh: AnyMesh | OpenMesh,
    params: frozenset[int],
    carried: Carried | None = None,
) -> Decision:
    """As `decide`, with the batch in as many parts as the user says, or as the memory demands.

    Raises:
        ValueError: as `decide`; or the program cannot be computed in as many parts as the user says.
    """
    count = spread.microbatches
    if count is None and spread.sharding.preset == SOLVE and spread.memory is not None:
        count = AUTO
    if count is None or count == 1:
        return decide(graph, leaves, arrays, spread, mesh, params, carried)
    paths = tuple(leaf.path for leaf in leaves)
    roles = roles_of(graph, paths, params)

    def once(program: Graph, on: AnyMesh | OpenMesh) -> Decision:
        return decide(program, leaves, arrays, spread, on, params, carried, roles)

    rounds = _Rounds(graph, roles, spread, mesh, once)
    return rounds.of(count).decision if isinstance(count, int) else rounds.fitting()


@dataclass(frozen=True)
class _Candidate:
    decision: Decision
    predicted: Prediction
    count: int


class _Rounds:
    def __init__(
        self, graph: Graph, roles: Roles, spread: Spread, mesh: AnyMesh | OpenMesh, once: Decide
    ) -> None:
        self.graph, self.roles, self.spread, self.mesh, self.once = graph, roles, spread, mesh, once
        self.batch = batch_of(graph, roles)
        self.said: tuple[str, ...] = ()

    def fitting(self) -> Decision:
        """The decision with the fewest parts that fits; if none does, the one that takes the least memory."""
        whole = self.candidate(self.once(copy_graph(self.graph), self.mesh), 1)
        if self.fits(whole):
            return whole.decision
        found = [whole]
        if isinstance(self.mesh, OpenMesh) and whole.decision.on is not None:  # the best for the whole batch
            self.mesh = whole.decision.on
            self.said = tuple(note for note in whole.decision.notes if note.startswith("mesh:"))
        advised = 1 if whole.decision.solution is None else whole.decision.solution.microbatches
        for count in self.counts(max(advised, 2)):
            try:
                found.append(self.of(count))
            except MicrobatchError as error:
                if len(found) == 1:
                    notes = (*whole.decision.notes, f"the batch stays whole: {error}")
                    return replace(whole.decision, notes=notes)
                break
            if self.fits(found[-1]):
                return found[-1].decision
        return min(found, key=lambda each: each.predicted.peak).decision

    def counts(self, first: int) -> Iterator[int]:
        """Powers of two, and times these the first that was asked for, that divide the batch."""
        size = min((value.shape[dim] for value, dim in self.batch.items()), default=1)
        while first <= size:
            if size % first == 0:
                yield first
            first *= 2

    def of(self, count: int) -> _Candidate:
        """The better of two: gradients added up over devices in each round, or once after all of them.

        Raises:
            MicrobatchError: the program cannot be computed in so many parts.
        """
        if isinstance(self.spread.sharding.preset, Plan):
            return self.planned(count)
        each = self.written(count, 1)
        devices = self.devices(each.decision)
        if devices == 1:
            return each
        size = next(value.shape[dim] for value, dim in self.batch.items())
        if size // count % devices:
            usable = nearest(size // devices, count)
            raise MicrobatchError(
                f"{self.path} has {size} examples, in {count} micro-batches {size // count} each, which do "
                f"not divide over the {devices} devices that split the batch: {usable} micro-batches would do"
            )
        once = self.written(count, devices)
        return min(each, once, key=lambda c: (not self.fits(c), c.predicted.seconds))

    def planned(self, count: int) -> _Candidate:
        """As a saved plan says: it is for sums of some number of devices.

        Raises:
            PlanError: it is not for this program in so many parts.
        """
        plan = self.spread.sharding.preset
        total = math.prod(size for _, size in plan.axes)
        failed: list[ValueError] = []
        for lanes in range(1, total + 1):
            if total % lanes:
                continue
            try:
                return self.written(count, lanes)
            except (PlanError, MicrobatchError) as error:
                failed.append(error)
        raise failed[0]

    @property
    def path(self) -> str:
        """What the batch is called."""
        return self.roles.paths[next(iter(self.batch)).index]

    def written(self, count: int, lanes: int) -> _Candidate:
        graph = copy_graph(self.graph)
        at = {value.index: dim for value, dim in self.batch.items()}
        batch = {value: at[value.index] for value in graph.inputs if value.index in at}
        in_parts(graph, parts_of(batch, self.roles, count, interleaved=True), count, lanes)
        decision = self.once(graph, self.mesh)
        added = "over devices once, after all of them" if lanes > 1 else "over devices in each of them"
        note = f"the batch is computed in {count} micro-batches; sums over it are added up {added}"
        notes = (*self.said, *decision.notes, note)
        return self.candidate(replace(decision, notes=notes), count)

    def devices(self, decision: Decision) -> int:
        """Over how many devices the batch is split."""
        found = 1
        for value, dim in self.batch.items():
            layout = decision.assignment.get(decision.graph.inputs[value.index])
            if layout is not None:
                found = max(found, decision.mesh.size(*layout.dims[dim]))
        return found

    def candidate(self, decision: Decision, count: int) -> _Candidate:
        gone = list(next_values(decision.graph, decision.roles)) if self.spread.donate else []
        return _Candidate(decision, predict(decision.graph, decision.assignment, decision.mesh, gone), count)

    def fits(self, each: _Candidate) -> bool:
        most = self.spread.memory
        return each.predicted.peak <= (each.decision.mesh.chip.memory if most is None else most)
