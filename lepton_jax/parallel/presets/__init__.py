"""Presets: well-known ways to spread a program, found in its structure.

    found = arrange("tp", graph, roles, mesh)
    found.layouts   of inputs, of the next state, and of what is computed for each example: for `propagate`
    found.notes     what was left whole, and why

Names and kinds of layers are not looked at: which dimensions go together is followed through the operations
(`together`), so any model will do that has the products, convolutions or look-ups in question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.presets import dp, ep, fsdp, fsdp_tp, sp, tp
from lepton_jax.parallel.presets.arrangement import Arrangement as Arrangement
from lepton_jax.parallel.presets.arrangement import PresetError as PresetError
from lepton_jax.parallel.presets.arrangement import Work
from lepton_jax.parallel.presets.together import Program as Program
from lepton_jax.parallel.roles import Roles

PRESETS: Final[Mapping[str, Callable[[Work], Arrangement]]] = MappingProxyType(
    {
        "dp": dp.arrange,
        "fsdp": fsdp.arrange,
        "tp": tp.arrange,
        "fsdp+tp": fsdp_tp.arrange,
        "sp": sp.arrange,
        "ep": ep.arrange,
    }
)


def arrange(
    name: str, graph: Graph, roles: Roles, mesh: MeshSpec, known: Program | None = None
) -> Arrangement:
    """How a preset spreads a program over a mesh.

    Args:
        name: of the preset.
        graph: calls inlined; it is not changed.
        roles: of its inputs.
        mesh: axes of one device are not used. With a single device all is whole, so that the same script runs
            on one machine and on many.
        known: what was looked up of the graph before, for several presets of one.

    Raises:
        PresetError: there is no such preset, it has nothing to split over several devices, or the mesh has
            not the axes for it.

    Example:
        >>> import jax
        >>> from lepton_jax.ir import trace
        >>> from lepton_jax.parallel.roles import roles_of
        >>> sizes = {"a": (8, 32), "b": (32, 8)}
        >>> params = {name: jax.ShapeDtypeStruct(size, "float32") for name, size in sizes.items()}
        >>> x = jax.ShapeDtypeStruct((4, 8), "float32")
        >>> graph = trace(lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"], params, x)
        >>> roles = roles_of(graph, ["params/a", "params/b", "x"])
        >>> found = arrange("tp", graph, roles, MeshSpec.of("model=4", chip="v5e"))
        >>> [str(found.layouts[value]) for value in graph.inputs]
        ['[-, model]', '[model, -]', '[-, -]']
    """
    if name not in PRESETS:
        raise PresetError(f"shard={name!r} is no preset; there are {', '.join(PRESETS)}")
    if mesh.devices < 2:
        whole = {value: Layout.whole(value.ndim) for value in graph.inputs}
        return Arrangement(whole, (f"shard={name!r} splits nothing: the mesh {mesh} has one device",))
    return PRESETS[name](Work(graph, roles, mesh, known=known))


def layouts_for(
    name: str, graph: Graph, roles: Roles, mesh: MeshSpec, known: Program | None = None
) -> dict[Value, Layout]:
    """The layouts that `arrange` finds.

    Raises:
        PresetError: as `arrange`.
    """
    return arrange(name, graph, roles, mesh, known).layouts
