"""A decision for a program whose batch is computed in parts, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from lepton_jax._sharded.deciding import decide
from lepton_jax._sharded.decision import Decision
from lepton_jax._sharded.donating import next_values
from lepton_jax._sharded.question import Question
from lepton_jax._sharded.request import OpenMesh
from lepton_jax._sharded.sharding import SOLVE
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.ir.inline import copy_graph
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.microbatches import (
    MicrobatchError,
    batch_of,
    gather_first,
    in_parts,
    nearest,
    parts_of,
    split_weights,
)
from lepton_jax.parallel.plan import Plan, PlanError
from lepton_jax.parallel.prediction import Prediction, predict
from lepton_jax.parallel.presets import PresetError
from lepton_jax.parallel.roles import Roles, roles_of

AUTO: Final = "auto"


def decide_in_rounds(question: Question) -> Decision:
    """As `decide`, with the batch in as many parts as the user says, or as the memory demands.

    Raises:
        ValueError: as `decide`; or the program cannot be computed in as many parts as the user says.
    """
    spread = question.spread
    count, plan = spread.microbatches, spread.sharding.preset
    if isinstance(plan, Plan):
        count = _as_planned(plan, count)
    if count is None and spread.sharding.preset == SOLVE and spread.memory is not None:
        count = AUTO
    if count is None or count == 1:
        return decide(question)
    roles = roles_of(question.graph, question.paths, question.params)
    rounds = _Rounds(replace(question, roles=roles), roles)
    return rounds.of(count).decision if isinstance(count, int) else rounds.fitting()


def _as_planned(plan: Plan, count: int | str | None) -> int:
    """In how many parts a saved plan computes the batch.

    Raises:
        PlanError: the user says another number.
    """
    if isinstance(count, int) and count != plan.microbatches:
        made = f"{plan.microbatches} micro-batches" if plan.microbatches > 1 else "the whole batch at once"
        raise PlanError(
            f"this plan was made for {made}, not for microbatches={count}: leave microbatches= out, or make "
            "the plan again"
        )
    return plan.microbatches


@dataclass(frozen=True)
class _Candidate:
    decision: Decision
    predicted: Prediction
    count: int


class _Rounds:
    def __init__(self, question: Question, roles: Roles) -> None:
        self.question, self.graph, self.roles = question, question.graph, roles
        self.spread, self.mesh = question.spread, question.mesh
        self.batch = batch_of(self.graph, roles)
        self.said: tuple[str, ...] = ()

    def once(self, graph: Graph, pins: Mapping[Value, Layout] | None = None) -> Decision:
        """The decision for a program, on the mesh or, once that is known, on the best one."""
        return decide(replace(self.question, graph=graph, mesh=self.mesh, pins=pins or {}))

    def fitting(self) -> Decision:
        """The decision with the fewest parts that fits; if none does, the one that takes the least memory."""
        whole = self.candidate(self.once(copy_graph(self.graph)), 1)
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
            except (MicrobatchError, PresetError) as error:  # of single examples presets split nothing
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
            PlanError: a saved plan is for other inputs, another program or another mesh.
        """
        plan = self.spread.sharding.preset
        if isinstance(plan, Plan):
            plan.check_inputs(self.graph, self.roles.paths)
            if plan.shares > 1 and self.convolves:
                raise PlanError(
                    f"this plan keeps {plan.shares} shares of the gradients of convolutions apart, which XLA "
                    "computes wrongly over a mesh: make the plan again"
                )
            return self.written(count, plan.shares, dict.fromkeys(plan.gathered_of()))
        each = self.written(count, 1)
        devices = self.devices(each.decision)
        if devices == 1:
            return each
        size = next(value.shape[dim] for value, dim in self.batch.items())
        if size // count % devices:
            usable = nearest(size // devices, count)
            parts = "only the whole batch" if usable == "1" else f"{usable} micro-batches"
            raise MicrobatchError(
                f"{self.path} has {size} examples, in {count} micro-batches {size // count} each, which do "
                f"not divide over the {devices} devices that split the batch: {parts} would do"
            )
        best = each if self.convolves else self.better(each, self.written(count, devices))
        weights = self.weights(best.decision)
        return self.better(best, self.written(count, best.decision.shares, weights)) if weights else best

    @property
    def convolves(self) -> bool:
        """Whether shares of gradients would come of grouped convolutions, which XLA splits wrongly."""
        return any(node.op == "conv_general_dilated" for node in self.graph.walk())

    @property
    def path(self) -> str:
        """What the batch is called."""
        return self.roles.paths[next(iter(self.batch)).index]

    def better(self, first: _Candidate, second: _Candidate) -> _Candidate:
        """The one that fits and costs less."""
        return min(first, second, key=lambda each: (not self.fits(each), self.cost(each)))

    def weights(self, decision: Decision) -> dict[int, Layout]:
        """What a round reads of outside that lies split as the batch does."""
        graph = decision.graph
        layouts = {dim: decision.assignment[graph.inputs[v.index]].dims[dim] for v, dim in self.batch.items()}
        return split_weights(
            graph, decision.assignment, {name for names in layouts.values() for name in names}
        )

    def written(
        self, count: int, lanes: int, weights: Mapping[int, Layout | None] | None = None
    ) -> _Candidate:
        """The program in parts, laid out.

        Args:
            count: how many parts.
            lanes: how many shares of each sum are kept apart until the last part.
            weights: by their places among the loop's operands, layouts of what is gathered before it; None
                where a plan says how all lies.
        """
        graph = copy_graph(self.graph)
        at = {value.index: dim for value, dim in self.batch.items()}
        batch = {value: at[value.index] for value in graph.inputs if value.index in at}
        in_parts(graph, parts_of(batch, self.roles, count, interleaved=True), count, lanes)
        gathered = weights or {}
        copies = dict(zip(gather_first(graph, gathered), gathered.values(), strict=True))
        decision = self.once(graph, {value: layout for value, layout in copies.items() if layout is not None})
        added = "over devices once, after all of them" if lanes > 1 else "over devices in each of them"
        note = f"the batch is computed in {count} micro-batches; sums over it are added up {added}"
        if gathered:
            note += f"; {len(gathered)} arrays that lie split are gathered once, before them"
        notes = tuple(dict.fromkeys((*self.said, *decision.notes, note)))
        made = replace(decision, notes=notes, microbatches=count, shares=lanes, gathered=tuple(gathered))
        return self.candidate(made, count)

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

    def cost(self, each: _Candidate) -> float:
        """What the user wants little of."""
        from lepton_jax.parallel.solver.objective import OBJECTIVES

        return OBJECTIVES[self.spread.sharding.objective].whole(each.predicted)

    def fits(self, each: _Candidate) -> bool:
        most = self.spread.memory
        return each.predicted.peak <= (each.decision.mesh.chip.memory if most is None else most)
