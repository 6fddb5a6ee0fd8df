"""Layouts that are searched for, where several processes run a program: the first decides for all.

A search ends after some time, so processes on machines with other loads would find other layouts. The first
process of the mesh searches, and the others lay the program out by its plan, which they read as a saved one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lepton_jax._sharded.agreeing import differences, kinds, late
from lepton_jax._sharded.calls import Call
from lepton_jax._sharded.decision import Decision
from lepton_jax._sharded.meeting import Group, Meeting
from lepton_jax._sharded.question import Question
from lepton_jax._sharded.request import OpenMesh, Spread
from lepton_jax._sharded.rounds import decide_in_rounds
from lepton_jax._sharded.sharding import SOLVE, Sharding
from lepton_jax.parallel.plan import Plan, PlanError

if TYPE_CHECKING:
    from lepton_jax._sharded.program import Laid


def is_searched(spread: Spread) -> bool:
    """Whether costs decide how a program lies. What the user says, or a preset, is the same in all."""
    sharding = spread.sharding
    if isinstance(sharding.preset, Plan):
        return False
    open_ = isinstance(spread.mesh, OpenMesh) or spread.microbatches not in (None, 1)
    return open_ or sharding.preset == SOLVE


def share(group: Group, name: str, call: Call, known: Laid | None, lay: Callable[[Shared], Laid]) -> Laid:
    """The program of a call as the first process decides; it is laid out in all.

    Args:
        group: the processes of the mesh.
        name: of the program.
        call: of it.
        known: what this process has decided alone, if it has.
        lay: makes the program.

    Raises:
        ValueError: the processes do not call the same program with arrays of the same kinds, or one of them
            cannot lay it out; in all of them.
        ProcessError: another process does not begin the program in time.
    """
    arrays = kinds([leaf.path for leaf in call.names()], call.leaves)
    waiting = late(name, arrays, group.here)
    with group.meeting(f"lay {name!r} out", waiting, "first", "plan", "all") as met:
        shared = Shared(group, met, {"name": name, "arrays": arrays})
        if group.leads:
            met.say("first", shared.mine)
        laid = known if known is not None and shared.keeps(known.decision) else lay(shared)
        met.settle()
    return laid


class Shared:
    """How a program lies in all processes of a mesh.

    Args:
        group: these processes.
        met: the meeting.
        mine: what this process is asked for.
    """

    def __init__(self, group: Group, met: Meeting, mine: dict[str, Any]) -> None:
        self.group, self.mine, self._met = group, mine, met
        self._plan: Plan | None = None

    def __call__(self, question: Question, decide: Callable[[], Decision]) -> Decision:
        """The decision of the first process, for a program that was traced in each.

        Args:
            question: what is asked of it.
            decide: takes the decision here.

        Raises:
            ValueError: the first process asks something else, or has failed; or the program differs.
        """
        if self.group.leads:
            decision = decide()
            self._met.say("plan", _plan(decision).to_json())
            return decision
        plan = self.plan()
        try:
            found = followed(question, plan)
        except PlanError as error:
            raise ValueError(f"it cannot take the plan of process {self.group.first}: {error}") from error
        return replace(found, notes=(*found.notes, f"process {self.group.first} decided how all lies"))

    def keeps(self, alone: Decision) -> bool:
        """Whether what this process has decided alone holds; if it leads, the others are told."""
        if self.group.leads:
            self._met.say("plan", _plan(alone).to_json())
            return True
        return replace(_plan(alone), notes=()) == replace(self.plan(), notes=())

    def plan(self) -> Plan:
        """What the first process has decided.

        Raises:
            ValueError: it asks something else, or has failed.
        """
        if self._plan is None:
            first = self.group.first
            found = differences(self._met.hear("first", first), self.mine, first, self.group.here)
            if found:
                self._met.say(str(self.group.here), wrong := "; ".join(found))
                raise ValueError(wrong)
            text = self._met.hear("plan", first, float("inf"))  # it is there, and says so if it fails
            self._plan = Plan.from_json(text, f"what process {first} says")
        return self._plan


def _plan(decision: Decision) -> Plan:
    """A decision for the other processes, without what only a reader wants to know."""
    return Plan.of(
        decision.graph,
        decision.paths,
        decision.assignment,
        decision.mesh,
        way=decision.way,
        roles=decision.roles,
        notes=decision.notes,
        most=0,
        microbatches=decision.microbatches,
        shares=decision.shares,
        gathered=decision.gathered,
    )


def followed(question: Question, plan: Plan) -> Decision:
    """The decision of a plan that was made for this program, on its own mesh where the user leaves that open.

    Raises:
        PlanError: it was made for another program, or for other devices.
    """
    mesh = question.mesh
    if isinstance(mesh, OpenMesh):
        from lepton_jax.parallel.solver.shapes import mesh_shapes

        shapes = mesh_shapes(len(mesh.devices), slices=mesh.slices)
        shape = next((each for each in shapes if tuple(each.sizes.items()) == plan.axes), None)
        if shape is None:
            raise PlanError(f"{len(mesh.devices)} devices make no mesh {dict(plan.axes)}")
        mesh = mesh.mesh(shape.sizes, shape.outer)
    spread = question.spread
    sharding = Sharding(preset=plan, local=spread.sharding.local)
    spread = replace(spread, sharding=sharding)
    return decide_in_rounds(replace(question, spread=spread, mesh=mesh))
