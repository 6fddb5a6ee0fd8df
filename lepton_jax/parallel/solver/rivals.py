"""What a solution is compared with: presets, and those of the batch over all axes of the mesh at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshAxis, MeshSpec
from lepton_jax.parallel.presets import PresetError, layouts_for
from lepton_jax.parallel.roles import Roles
from lepton_jax.parallel.solver.choices import real_axes

OVER_ALL: Final[Mapping[str, str]] = MappingProxyType(
    {"dp over all axes": "dp", "fsdp over all axes": "fsdp"}
)
"""Presets as they are on a mesh of one axis: they use an axis called `model` as well."""


def preset_layouts(name: str, graph: Graph, roles: Roles, mesh: MeshSpec) -> dict[Value, Layout]:
    """The layouts of a preset, or of one of `OVER_ALL`.

    Raises:
        PresetError: as `presets.arrange`; the mesh has one axis only, where there is nothing to join.
    """
    if name not in OVER_ALL:
        return layouts_for(name, graph, roles, mesh)
    axes = real_axes(mesh)
    if len(axes) < 2:
        raise PresetError(f"{name}: the mesh {mesh} has one axis")
    joined = MeshSpec((MeshAxis("data", mesh.devices, mesh.axis(axes[0]).link),), mesh.chip)
    found = layouts_for(OVER_ALL[name], graph, roles, joined)
    return {
        value: replace(layout, dims=tuple(tuple(axes) if each else () for each in layout.dims))
        for value, layout in found.items()
    }
