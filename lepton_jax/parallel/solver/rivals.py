"""What a solution is compared with: presets, and those of the batch over all axes of the mesh at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshAxis, MeshSpec
from lepton_jax.parallel.prediction import predict
from lepton_jax.parallel.presets import PRESETS, PresetError, Program, layouts_for
from lepton_jax.parallel.propagation import propagate
from lepton_jax.parallel.roles import Roles
from lepton_jax.parallel.solver.choices import real_axes
from lepton_jax.parallel.solver.solution import Candidate

OVER_ALL: Final[Mapping[str, str]] = MappingProxyType(
    {"dp over all axes": "dp", "fsdp over all axes": "fsdp"}
)
"""Presets as they are on a mesh of one axis: they use an axis called `model` as well."""


def presets(
    graph: Graph,
    roles: Roles,
    mesh: MeshSpec,
    pins: Mapping[Value, Layout],
    donated: Collection[int] = (),
) -> list[Candidate]:
    """The presets that can be had, with the pins; those of the batch over all axes at once too.

    What two presets say alike is propagated and predicted once.
    """
    found: list[Candidate] = []
    known, said = Program(graph), list[tuple[dict[Value, Layout], Candidate]]()
    for name in (*PRESETS, *OVER_ALL):
        try:
            given = preset_layouts(name, graph, roles, mesh, known)
            same = next((each for layouts, each in said if layouts == given), None)
            if same is not None:
                found.append(replace(same, name=name))
                continue
            first = [graph.inputs[i] for i in roles.batch if graph.inputs[i] in given]
            wanted, own = {**given, **pins}, given.keys() - pins.keys()
            assignment = propagate(graph, wanted, mesh, first=first, yielding=own)
        except ValueError:  # a PresetError too
            continue
        predicted = predict(graph, assignment, mesh, donated)
        found.append(Candidate(name, assignment, predicted, float(predicted.peak)))
        said.append((given, found[-1]))
    return found


def preset_layouts(
    name: str, graph: Graph, roles: Roles, mesh: MeshSpec, known: Program | None = None
) -> dict[Value, Layout]:
    """The layouts of a preset, or of one of `OVER_ALL`.

    Raises:
        PresetError: as `presets.arrange`; the mesh has one axis only, where there is nothing to join.
    """
    if name not in OVER_ALL:
        return layouts_for(name, graph, roles, mesh, known)
    axes = real_axes(mesh)
    if len(axes) < 2:
        raise PresetError(f"{name}: the mesh {mesh} has one axis")
    joined = MeshSpec((MeshAxis("data", mesh.devices, mesh.axis(axes[0]).link),), mesh.chip)
    found = layouts_for(OVER_ALL[name], graph, roles, joined, known)
    return {
        value: replace(layout, dims=tuple(tuple(axes) if each else () for each in layout.dims))
        for value, layout in found.items()
    }
