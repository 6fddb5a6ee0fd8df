"""What is said of the arrays of a program: by patterns, hints, metadata, and where arrays lie already."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lepton_jax._sharded.question import Question
from lepton_jax.ir import _jax, _primitives
from lepton_jax.ir.graph import Value
from lepton_jax.ir.paths import choose
from lepton_jax.parallel.annotations import Annotator, Entry, Spec, matched, rules_of, spec_of
from lepton_jax.parallel.constraints import hints
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import AnyMesh, MeshSpec
from lepton_jax.parallel.multislice import outer_axes
from lepton_jax.parallel.roles import Roles

Entries = tuple[Entry, ...]


class Given:
    """What is said of a program on a mesh.

    Args:
        question: what is asked.
        mesh: JAX's.

    Attributes:
        mesh: as planning sees it.
        open: values of which some dimensions are open; None of these.
        hinted_values: what hints give.
    """

    def __init__(self, question: Question, mesh: AnyMesh) -> None:
        self.question, self.jax_mesh = question, mesh
        self.sharding = question.spread.sharding
        self.mesh = MeshSpec.of(mesh, outer=outer_axes(mesh))
        self.annotator = Annotator(self.mesh, self.sharding.rules)
        self.open: dict[Value, Entries] = {}
        self.hinted_values: list[Value] = []

    def pinned_inputs(self) -> dict[Value, Layout]:
        """What the patterns say."""
        found: dict[Value, Layout] = {}
        if self.question.carried is None:
            specs: Mapping[int, Spec] = matched(dict(self.sharding.specs), self.question.paths)
        else:
            specs = self.question.carried.specs
            found = {
                self.question.graph.inputs[i]: layout for i, layout in self.question.carried.layouts.items()
            }
        for i, spec in specs.items():
            self.pin(found, self.annotator, self.question.graph.inputs[i], spec, self.question.paths[i])
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
        for node in hints(self.question.graph):
            self.hinted_values.append(node.result)
            what = f"the {node.op.replace('_', ' ')} at {_jax.summarize(node.source)}"
            if node.op == _primitives.SHARD_HINT:
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

    def written_on_arrays(self, state: Collection[int] = ()) -> dict[Value, Layout]:
        """What Flax's metadata says, and where arrays lie on this mesh already.

        Args:
            state: the positions of an optimiser's state. Flax writes there what it has written on the
                parameter, on rows, columns and single numbers too, so what does not fit says nothing.
        """
        found: dict[Value, Layout] = {}
        for i, (leaf, array, value) in enumerate(
            zip(self.question.leaves, self.question.arrays, self.question.graph.inputs, strict=True)
        ):
            if leaf.note is not None and len(leaf.note.names) <= value.ndim:
                rules = (*self.sharding.rules, *rules_of(leaf.note.rules))
                spec, annotator = spec_of(leaf.note.names, leaf.path), Annotator(self.mesh, rules)
                entries = annotator.entries(spec, value.ndim, leaf.path)
                fits = Layout(tuple(each or () for each in entries)).divides(value.shape, self.mesh)
                if fits or i not in state:
                    self.pin(found, annotator, value, spec, leaf.path)
            elif isinstance(array, (jax.Array, jax.ShapeDtypeStruct)) and not isinstance(array, _jax.Tracer):
                sharding = array.sharding
                if not isinstance(sharding, NamedSharding) or _jax.is_extended(value.dtype):
                    continue
                if sharding.mesh.shape == self.jax_mesh.shape:
                    found[value] = Layout.from_spec(sharding.spec, value.ndim)
        return found

    def parts(self, given: Mapping[Value, Layout]) -> dict[Value, tuple[str, ...]]:
        """Of what each process gives its part: the axes that must split dimension 0 for each to hold its own.

        These are the axes of the mesh along which another process comes. They come before others, so that
        the rows of all such arrays stand in the same order; where the user says how one of them lies, in its.

        Args:
            given: what the user says.
        """
        if not self.sharding.local or not isinstance(self.jax_mesh, Mesh):
            return {}
        owners = np.vectorize(lambda device: device.process_index, otypes=[int])(self.jax_mesh.devices)
        axes = tuple(
            name for at, name in enumerate(self.jax_mesh.axis_names) if np.diff(owners, axis=at).any()
        )
        chosen = choose(self.sharding.local, self.question.paths, "local") if axes else ()
        values = [self.question.graph.inputs[i] for i in chosen]
        written = [given[value].dims[0] for value in values if value in given]
        first = next((each for each in written if set(axes) <= set(each)), axes)
        return dict.fromkeys(values, first)

    def check_something(self, given: Mapping[Value, Layout]) -> None:
        """Raise where nobody says anything."""
        if any(not layout.is_whole for layout in given.values()) or self.open or self.sharding.specs:
            return
        paths = self.question.paths
        shown = ", ".join(paths[:4]) + (", …" if len(paths) > 4 else "")
        last = paths[-1] if paths else "x"
        raise ValueError(
            "shard: nothing says how to spread this program: no pattern, no metadata on its arguments, no "
            "hint in it. Give shard='dp' or another preset, shard='auto', or patterns, as "
            f"shard={{{last!r}: PartitionSpec({self.mesh.names[0]!r})}}; "
            f"its arguments: {shown}"
        )

    def follow(self, given: dict[Value, Layout], pins: Mapping[Value, Layout], roles: Roles) -> None:
        """The optimiser's state lies as its parameters, and what comes back as what went in.

        Args:
            pins: what of `given` the user says; the preset's layouts of what follows a pin give way to it.
        """
        inputs, outputs = self.question.graph.inputs, self.question.graph.outputs
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
