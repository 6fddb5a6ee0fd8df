"""What a user says of parameters, carried over to what is prepared of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax

from lepton_jax._sharded.deciding import follow_through
from lepton_jax._sharded.naming import Leaf
from lepton_jax._sharded.question import Carried
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.inline import copy_graph
from lepton_jax.parallel.annotations import matched
from lepton_jax.parallel.layouts import Layout

if TYPE_CHECKING:
    from lepton_jax._bound import Bound
    from lepton_jax._prepared import Form
    from lepton_jax._sharded.request import Spread
    from lepton_jax.parallel.meshes import AnyMesh


@dataclass(frozen=True)
class Served:
    """Prepared parameters, which come first among the arrays of a call.

    Attributes:
        form: what was prepared.
        count: how many arrays.
        bound: gives the program at these shapes, cut in two.
        carried: says what the user's words mean for the call.
    """

    form: Form
    count: int
    bound: Callable[[], Bound]
    carried: Callable[[AnyMesh], Carried]


def carry(
    bound: Bound, leaves: Sequence[Leaf], arrays: Sequence[Any], spread: Spread, mesh: AnyMesh
) -> Carried:
    """Follow the user's words through the program that prepares the parameters.

    The codes of a quantised weight and their scales lie as the weight would, as far as they divide: a scale
    for each row is not split where the rows are summed over, packed codes only at whole bytes and groups.

    Args:
        leaves: what the arrays of the whole call are called.
        arrays: these, or their shapes.

    Raises:
        ValueError: the words do not fit the program.
    """
    said = matched(dict(spread.sharding.specs), [leaf.path for leaf in leaves])
    early = sorted(bound.params)
    late = [i for i in range(len(leaves)) if i not in bound.params]
    count = len(bound.form.names)
    specs = {count + j: said[i] for j, i in enumerate(late) if i in said}
    graph = copy_graph(bound.parts.prepare)
    inline_calls(graph)
    seen = [Leaf("calibration", "calibration")] * len(bound.seen)
    names = [*(leaves[i] for i in early), *seen]
    given = [*(arrays[i] for i in early), *(jax.ShapeDtypeStruct((), "float32") for _ in seen)]
    of_params = {j: said[i] for j, i in enumerate(early) if i in said}
    found, known = follow_through(graph, names, given, spread, mesh, of_params)
    told = {early[j] for j in known if j < len(early)}
    layouts: dict[int, Layout] = {}
    for position, (value, sources) in enumerate(zip(graph.outputs, bound.parts.sources, strict=True)):
        layout = Layout.whole(value.ndim) if value.is_const else found[value]
        if told.intersection(sources) or not layout.is_whole:
            layouts[position] = layout
    wanted = {early[j]: found[graph.inputs[j]] for j in known if j < len(early)}
    return Carried(specs, layouts, _not_kept(bound, wanted, layouts, leaves))


def _not_kept(
    bound: Bound, wanted: Mapping[int, Layout], layouts: Mapping[int, Layout], leaves: Sequence[Leaf]
) -> tuple[str, ...]:
    """A note for each parameter that is to be split, of which a large array that is kept is whole."""
    notes: list[str] = []
    outputs = bound.parts.prepare.outputs
    for i, layout in wanted.items():
        made = [k for k, sources in enumerate(bound.parts.sources) if i in sources]
        sizes = {k: math.prod(outputs[k].shape) * outputs[k].aval.dtype.itemsize for k in made}
        large = [k for k in made if 2 * sizes[k] >= max(sizes.values())]
        whole = [k for k in large if layouts[k].is_whole]
        if whole and not layout.is_whole:
            kept = " and ".join(f"{bound.form.names[k]} ({outputs[k].aval.str_short()})" for k in whole)
            notes.append(
                f"{leaves[i].path} shall lie as {layout}; what is kept of it, {kept}, is whole: packed codes "
                "or groups do not divide so"
            )
    return tuple(notes)
