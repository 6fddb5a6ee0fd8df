"""From what the user says of some arrays to the layout of every array of a program."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lepton_jax._sharded.decision import Decision
from lepton_jax._sharded.donating import next_values
from lepton_jax._sharded.given import Entries, Given
from lepton_jax._sharded.naming import Leaf
from lepton_jax._sharded.question import Carried, Question
from lepton_jax._sharded.request import OpenMesh, Spread
from lepton_jax._sharded.sharding import SOLVE
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.annotations import Spec
from lepton_jax.parallel.constraints import part_hints
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import AnyMesh
from lepton_jax.parallel.opened import Leading, Opened
from lepton_jax.parallel.plan import Plan
from lepton_jax.parallel.propagation import propagate
from lepton_jax.parallel.roles import Roles, roles_of

if TYPE_CHECKING:
    from lepton_jax.parallel.solver import Solution
    from lepton_jax.parallel.solver.shapes import Attempt, Shape

_SECONDS: Final = 60.0
"""For the solver."""


def decide(question: Question) -> Decision:
    """Decide how every array of a program lies. Hints in it are parted from what loops tie them to.

    Raises:
        ValueError: what the user says does not fit the program or the mesh; the message says what to do.
    """
    part_hints(question.graph)
    mesh = question.mesh
    if not isinstance(mesh, OpenMesh):
        return _Decider(question, mesh).run()
    from lepton_jax.parallel.factors.lookup import kept_factors
    from lepton_jax.parallel.solver.objective import OBJECTIVES
    from lepton_jax.parallel.solver.shapes import best_shape, mesh_shapes

    def attempt(shape: Shape, seconds: float, beat: float) -> Attempt[Decision]:
        made = mesh.mesh(shape.sizes, shape.outer)
        return _attempt(_Decider(question, made).run(seconds, beat), question.spread)

    shapes = mesh_shapes(len(mesh.devices), slices=mesh.slices)
    with kept_factors():
        best = best_shape(shapes, attempt, _SECONDS)
    words = OBJECTIVES[question.spread.sharding.objective].words
    tried = ", ".join(f"{shape} {words(amount)}" for shape, amount in best.tried.items())
    notes = (f"mesh: {best.shape} of those tried: {tried}", *(f"mesh: {note}" for note in best.notes))
    return replace(best.found, notes=(*notes, *best.found.notes))


def _attempt(found: Decision, spread: Spread) -> Attempt[Decision]:
    """What a decision costs, to compare meshes."""
    from lepton_jax.parallel.prediction import predict
    from lepton_jax.parallel.solver.objective import OBJECTIVES
    from lepton_jax.parallel.solver.shapes import Attempt, attempted

    if found.solution is not None:
        return attempted(found.solution, found)
    predicted = predict(found.graph, found.assignment, found.mesh)
    memory = found.mesh.chip.memory if spread.memory is None else spread.memory
    wanted = OBJECTIVES[spread.sharding.objective]
    missing = max(0.0, predicted.peak - memory)
    flops = predicted.flops if wanted.byte else 0.0
    return Attempt(wanted.whole(predicted), missing, math.inf, found, flops=flops)


def follow_through(
    graph: Graph,
    leaves: Sequence[Leaf],
    arrays: Sequence[Any],
    spread: Spread,
    mesh: AnyMesh,
    specs: Mapping[int, Spec],
) -> tuple[Mapping[Value, Layout], frozenset[int]]:
    """How the arrays of a program lie that prepares parameters, as far as the user says how these lie.

    Args:
        specs: of inputs, by position.

    Returns:
        The layouts, and the positions of the inputs of which anything is said.
    """
    question = Question(graph, leaves, arrays, spread, mesh, carried=Carried(specs))
    return _Decider(question, mesh).through()


class _Decider:
    def __init__(self, question: Question, mesh: AnyMesh) -> None:
        self.question, self.graph, self.spread = question, question.graph, question.spread
        self.sharding = question.spread.sharding
        self.said = Given(question, mesh)
        self.mesh, self.jax_mesh = self.said.mesh, mesh
        self.notes: list[str] = [] if question.carried is None else list(question.carried.notes)

    def run(self, seconds: float = _SECONDS, beat: float = math.inf) -> Decision:
        """The layouts; what the arguments say is for the solver.

        Raises:
            CannotWin: the solver's search cannot find less than `beat` seconds.
        """
        preset = self.sharding.preset
        asked, paths = self.question, self.question.paths
        roles = asked.roles or roles_of(self.graph, paths, asked.params)
        pins = self.said.pinned_inputs()
        if isinstance(preset, Plan):
            return self.saved(preset, roles)
        way = "annotations" if preset is None else str(preset)
        pins |= {**self.said.hinted(), **asked.pins}
        given = dict(pins)
        if preset is None:
            given = self.said.written_on_arrays(roles.state) | given
            self.said.check_something(given)
        elif preset != SOLVE:
            from lepton_jax.parallel.presets import arrange

            arranged = arrange(preset, self.graph, roles, self.mesh)
            self.notes += arranged.notes
            given = {**arranged.layouts, **given}
            given = {value: layout for value, layout in given.items() if value not in self.said.open}
        self.said.follow(given, pins, roles)
        if preset == SOLVE:
            solution = self.solved(given, roles, seconds, beat)
            assignment = solution.assignment
        else:
            solution = None
            assignment = self.propagated(given, roles, given.keys() - pins.keys())
        notes, on = tuple(self.notes), self.jax_mesh
        return Decision(self.graph, paths, roles, self.mesh, assignment, way, notes, on, solution)

    def through(self) -> tuple[Mapping[Value, Layout], frozenset[int]]:
        """See `follow_through`."""
        part_hints(self.graph)
        given = self.said.pinned_inputs() | self.said.hinted()
        if self.sharding.preset is None:
            given = self.said.written_on_arrays() | given
        said = frozenset(value.index for value in {*given, *self.said.open} if value.graph is self.graph)
        return self.propagated(given, Roles((), ()), ()), said

    def propagated(
        self, given: Mapping[Value, Layout], roles: Roles, yielding: Collection[Value]
    ) -> Mapping[Value, Layout]:
        """What follows; the layouts of `yielding` hold where the user's leave them."""
        batch = [self.graph.inputs[i] for i in roles.batch]
        first = [value for value in (*batch, *self.said.hinted_values) if value in given]
        find = functools.partial(propagate, self.graph, mesh=self.mesh, first=first, yielding=yielding)
        found = find(given)
        if not self.said.open:
            return found
        completed = {value: self.complete(entries, found[value]) for value, entries in self.said.open.items()}
        return find({**given, **completed})

    def complete(self, entries: Entries, found: Layout) -> Layout:
        """What is open as it was found, without the axes that are taken."""
        used = {axis for each in entries if each for axis in each}
        dims = [
            tuple(axis for axis in before if axis not in used) if each is None else each
            for each, before in zip(entries, found.dims, strict=True)
        ]
        return Layout(tuple(dims))

    def solved(self, given: Mapping[Value, Layout], roles: Roles, seconds: float, beat: float) -> Solution:
        """What the solver finds with these pins."""
        from lepton_jax.parallel.solver import solve

        donated = next_values(self.graph, roles) if self.spread.donate else ()
        find = functools.partial(
            solve,
            self.graph,
            roles,
            self.mesh,
            memory=self.spread.memory,
            donated=list(donated),
            seconds=seconds,
            beat=beat,
            objective=self.sharding.objective,
        )
        opened: dict[Value, Opened] = {**self.said.open}
        for value, axes in self.said.parts(given).items():
            entries = opened.get(value, (None,) * value.ndim)
            if value not in given and entries[0] is None:  # else the user says how it lies
                what = f"{self.question.paths[value.index]}, of which each process gives a part,"
                Layout((axes, *((),) * (value.ndim - 1))).check(value.shape, self.mesh, what)
                opened[value] = (Leading(axes), *entries[1:])
        solution = find(pins=given, opened=opened)
        found = {value: solution.assignment[value].complete() for value in self.said.open}
        completed = {value: self.complete(entries, found[value]) for value, entries in self.said.open.items()}
        if completed != found:
            solution = find(pins={**given, **completed}, opened=opened)
        self.notes += [f"solver: {solution}", *solution.notes]
        return solution

    def saved(self, plan: Plan, roles: Roles) -> Decision:
        if self.sharding.specs:
            raise ValueError("shard: a saved plan says how all arrays lie: leave out the patterns beside it")
        paths, notes = self.question.paths, plan.notes
        elsewhere = plan.inputs_of(self.graph, paths, self.mesh)
        if elsewhere is None:
            assignment: Mapping[Value, Layout] = plan.layouts_of(self.graph, paths, self.mesh)
        else:
            given, note = elsewhere
            self.said.follow(given, {}, roles)
            assignment, notes = self.propagated(given, roles, ()), (*notes, note)
        return Decision(self.graph, paths, roles, self.mesh, assignment, plan.way, notes, self.jax_mesh)
