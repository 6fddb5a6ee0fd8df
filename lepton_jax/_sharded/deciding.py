"""From what the user says of some arrays to the layout of every array of a program."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import jax
from jax.sharding import NamedSharding

from lepton_jax._sharded.carrying import Carried
from lepton_jax._sharded.decision import Decision
from lepton_jax._sharded.donating import next_values
from lepton_jax._sharded.naming import Leaf
from lepton_jax._sharded.request import SOLVE, OpenMesh, Sharding, Spread
from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.annotations import Annotator, Entry, Spec, matched, rules_of, spec_of
from lepton_jax.parallel.constraints import hints, part_hints
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import AnyMesh, MeshSpec
from lepton_jax.parallel.multislice import outer_axes
from lepton_jax.parallel.plan import Plan
from lepton_jax.parallel.propagation import propagate
from lepton_jax.parallel.roles import Roles, roles_of

if TYPE_CHECKING:
    from lepton_jax.parallel.solver import Solution
    from lepton_jax.parallel.solver.shapes import Attempt, Shape

Entries = tuple[Entry, ...]
_SECONDS: Final = 60.0
"""For the solver."""


def decide(
    graph: Graph,
    leaves: Sequence[Leaf],
    arrays: Sequence[Any],
    spread: Spread,
    mesh: AnyMesh | OpenMesh,
    params: frozenset[int],
    carried: Carried | None = None,
    roles: Roles | None = None,
) -> Decision:
    """Decide how every array of a program lies.

    Args:
        graph: the program; plain calls are inlined. Hints in it are parted from what loops tie them to.
        leaves: what its inputs are called.
        arrays: the inputs, to see where they lie already.
        spread: what the user says.
        mesh: JAX's, or the devices of which one is to be made.
        params: the positions of inputs that the user calls parameters.
        carried: what the patterns say of the inputs, where some of these are prepared parameters.
        roles: of the inputs, where they are known already.

    Raises:
        ValueError: what the user says does not fit the program or the mesh; the message says what to do.
    """
    part_hints(graph)
    if not isinstance(mesh, OpenMesh):
        return _Decider(graph, leaves, arrays, spread, mesh, params, carried, roles).run()
    from lepton_jax.parallel.factors.lookup import kept_factors
    from lepton_jax.parallel.solver.shapes import best_shape, mesh_shapes

    def attempt(shape: Shape, seconds: float, beat: float) -> Attempt[Decision]:
        made = mesh.mesh(shape.sizes, shape.outer)
        decider = _Decider(graph, leaves, arrays, spread, made, params, carried, roles)
        return _attempt(decider.run(seconds, beat), spread)

    shapes = mesh_shapes(len(mesh.devices), slices=mesh.slices)
    with kept_factors():
        best = best_shape(shapes, attempt, _SECONDS)
    tried = ", ".join(f"{shape} {seconds * 1e3:.4g} ms" for shape, seconds in best.tried.items())
    notes = (f"mesh: {best.shape} of those tried: {tried}", *(f"mesh: {note}" for note in best.notes))
    return replace(best.found, notes=(*notes, *best.found.notes))


def _attempt(found: Decision, spread: Spread) -> Attempt[Decision]:
    """What a decision costs, to compare meshes."""
    from lepton_jax.parallel.prediction import predict
    from lepton_jax.parallel.solver.shapes import Attempt

    solution = found.solution
    if solution is not None:
        missing, parts = float(solution.missing), solution.microbatches
        return Attempt(solution.predicted, missing, solution.objective, found, parts)
    predicted = predict(found.graph, found.assignment, found.mesh)
    memory = found.mesh.chip.memory if spread.memory is None else spread.memory
    return Attempt(predicted.seconds, max(0.0, predicted.peak - memory), math.inf, found)


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
    return _Decider(graph, leaves, arrays, spread, mesh, frozenset(), Carried(specs)).through()


class _Decider:
    def __init__(
        self,
        graph: Graph,
        leaves: Sequence[Leaf],
        arrays: Sequence[Any],
        spread: Spread,
        mesh: AnyMesh,
        params: frozenset[int],
        carried: Carried | None,
        roles: Roles | None = None,
    ) -> None:
        self.graph, self.leaves, self.arrays, self.spread, self.jax_mesh = graph, leaves, arrays, spread, mesh
        self.sharding: Sharding = spread.sharding
        self.mesh = MeshSpec.of(mesh, outer=outer_axes(mesh))
        self.annotator = Annotator(self.mesh, self.sharding.rules)
        self.paths = tuple(leaf.path for leaf in leaves)
        self.params = params
        self.carried = carried
        self.roles = roles
        self.open: dict[Value, Entries] = {}
        self.hinted_values: list[Value] = []
        self.notes: list[str] = [] if carried is None else list(carried.notes)

    def run(self, seconds: float = _SECONDS, beat: float = math.inf) -> Decision:
        """The layouts; what the arguments say is for the solver.

        Raises:
            CannotWin: the solver's search cannot find less than `beat` seconds.
        """
        preset = self.sharding.preset
        roles = self.roles or roles_of(self.graph, self.paths, self.params)
        pins = self.pinned_inputs()
        if isinstance(preset, Plan):
            return self.saved(preset, roles)
        way = "annotations" if preset is None else str(preset)
        pins |= self.hinted()
        given = dict(pins)
        if preset is None:
            given = self.written_on_arrays() | given
            self.check_something(given)
        elif preset != SOLVE:
            from lepton_jax.parallel.presets import arrange

            arranged = arrange(preset, self.graph, roles, self.mesh)
            self.notes += arranged.notes
            given = {**arranged.layouts, **given}
            given = {value: layout for value, layout in given.items() if value not in self.open}
        self.follow(given, pins, roles)
        if preset == SOLVE:
            solution = self.solved(given, roles, seconds, beat)
            assignment = solution.assignment
        else:
            solution = None
            assignment = self.propagated(given, roles, given.keys() - pins.keys())
        notes, on = tuple(self.notes), self.jax_mesh
        return Decision(self.graph, self.paths, roles, self.mesh, assignment, way, notes, on, solution)

    def through(self) -> tuple[Mapping[Value, Layout], frozenset[int]]:
        """See `follow_through`."""
        part_hints(self.graph)
        given = self.pinned_inputs() | self.hinted()
        if self.sharding.preset is None:
            given = self.written_on_arrays() | given
        said = frozenset(value.index for value in {*given, *self.open} if value.graph is self.graph)
        return self.propagated(given, Roles((), ()), ()), said

    # What is given

    def pinned_inputs(self) -> dict[Value, Layout]:
        """What the patterns say."""
        found: dict[Value, Layout] = {}
        if self.carried is None:
            specs: Mapping[int, Spec] = matched(dict(self.sharding.specs), self.paths)
        else:
            specs = self.carried.specs
            found = {self.graph.inputs[i]: layout for i, layout in self.carried.layouts.items()}
        for i, spec in specs.items():
            self.pin(found, self.annotator, self.graph.inputs[i], spec, self.paths[i])
        return found

    def pin(
        self, found: dict[Value, Layout], annotator: Annotator, value: Value, spec: Spec, what: str
    ) -> None:
        """Note the layout of a spec, or what of it is open."""
        layout = annotator.layout(spec, value.shape, what)
        entries = annotator.entries(spec, value.ndim, what)
        if None in entries:
            self.open[value] = entries
        else:
            found[value] = layout

    def hinted(self) -> dict[Value, Layout]:
        """What hints in the program say, and users' own constraints on a mesh of these axes."""
        found: dict[Value, Layout] = {}
        for node in hints(self.graph):
            self.hinted_values.append(node.result)
            what = f"the {node.op.replace('_', ' ')} at {_jax.summarize(node.source)}"
            if node.op == _jax.SHARD_HINT:
                self.pin(found, self.annotator, node.result, node.params["spec"], what)
                continue
            sharding = node.params["sharding"]
            if isinstance(sharding, NamedSharding) and dict(sharding.mesh.shape) == dict(self.jax_mesh.shape):
                free = node.params.get("unconstrained_dims") or frozenset()
                written = spec_of(sharding.spec, what)
                full = (*written, *((),) * (node.result.ndim - len(written)))
                spec = tuple(None if d in free else each for d, each in enumerate(full))
                self.pin(found, Annotator(self.mesh), node.result, spec, what)
        return found

    def written_on_arrays(self) -> dict[Value, Layout]:
        """What Flax's metadata says, and where arrays lie on this mesh already."""
        found: dict[Value, Layout] = {}
        for leaf, array, value in zip(self.leaves, self.arrays, self.graph.inputs, strict=True):
            if leaf.note is not None and len(leaf.note.names) <= value.ndim:
                rules = (*self.sharding.rules, *rules_of(leaf.note.rules))
                spec = spec_of(leaf.note.names, leaf.path)
                self.pin(found, Annotator(self.mesh, rules), value, spec, leaf.path)
            elif isinstance(array, (jax.Array, jax.ShapeDtypeStruct)) and not isinstance(array, _jax.Tracer):
                sharding = array.sharding
                if not isinstance(sharding, NamedSharding) or _jax.is_extended(value.dtype):
                    continue
                if sharding.mesh.shape == self.jax_mesh.shape:
                    found[value] = Layout.from_spec(sharding.spec, value.ndim)
        return found

    def check_something(self, given: Mapping[Value, Layout]) -> None:
        """Raise where nobody says anything."""
        if any(not layout.is_whole for layout in given.values()) or self.open or self.sharding.specs:
            return
        shown = ", ".join(self.paths[:4]) + (", …" if len(self.paths) > 4 else "")
        raise ValueError(
            "shard: nothing says how to spread this program: no pattern, no metadata on its arguments, no "
            "hint in it. Give shard='dp' or another preset, shard='auto', or patterns, as "
            f"shard={{{self.paths[-1] if self.paths else 'x'!r}: PartitionSpec({self.mesh.names[0]!r})}}; "
            f"its arguments: {shown}"
        )

    def follow(self, given: dict[Value, Layout], pins: Mapping[Value, Layout], roles: Roles) -> None:
        """The optimiser's state lies as its parameters, and what comes back as what went in.

        Args:
            pins: what of `given` the user says; the preset's layouts of what follows a pin give way to it.
        """
        inputs, outputs = self.graph.inputs, self.graph.outputs
        known = {i: given[value] for i, value in enumerate(inputs) if value in given}
        for i, layout in roles.follow(known).items():
            value, owner = inputs[i], inputs[roles.owners[i][0]]
            if value in self.open or not layout.divides(value.shape, self.mesh):
                continue
            if value not in given or (owner in pins and value not in pins):
                given[value] = layout
        for i, o in roles.returned.items():
            before, after = inputs[i], outputs[o]
            if after.node is None or after.node.regions or after in pins:
                continue  # what a loop returns lies as what it begins with
            if before not in given or after.shape != before.shape:
                continue
            given[after] = given[before]

    # What follows from it

    def propagated(
        self, given: Mapping[Value, Layout], roles: Roles, yielding: Collection[Value]
    ) -> Mapping[Value, Layout]:
        """What follows; the layouts of `yielding` hold where the user's leave them."""
        batch = [self.graph.inputs[i] for i in roles.batch]
        first = [value for value in (*batch, *self.hinted_values) if value in given]
        find = functools.partial(propagate, self.graph, mesh=self.mesh, first=first, yielding=yielding)
        found = find(given)
        if not self.open:
            return found
        completed = {value: self.complete(entries, found[value]) for value, entries in self.open.items()}
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
        )
        solution = find(pins=given, opened=self.open)
        found = {value: solution.assignment[value].complete() for value in self.open}
        completed = {value: self.complete(entries, found[value]) for value, entries in self.open.items()}
        if completed != found:
            solution = find(pins={**given, **completed})
        self.notes += [f"solver: {solution}", *solution.notes]
        return solution

    def saved(self, plan: Plan, roles: Roles) -> Decision:
        if self.sharding.specs:
            raise ValueError("shard: a saved plan says how all arrays lie: leave out the patterns beside it")
        assignment = plan.layouts_of(self.graph, self.paths, self.mesh)
        notes, on = plan.notes, self.jax_mesh
        return Decision(self.graph, self.paths, roles, self.mesh, assignment, plan.way, notes, on)
