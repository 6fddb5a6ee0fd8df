"""Propagation: from the layouts of some arrays to those of all.

As GSPMD (Xu et al., 2021, arXiv 2105.04663) and Shardy do it: what splits a factor of an operation in one
array splits it in the others, forward and backward, until nothing changes. A layout only grows, so it ends.
Operations on elements go first, sums over a factor last; of what is left, the largest arrays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.demands import Axes, Demand, demands
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.spread import Spread
from lepton_jax.parallel.ties import Ties


def propagate(
    graph: Graph,
    given: Mapping[Value, Layout],
    mesh: MeshSpec,
    *,
    first: Collection[Value] = (),
    yielding: Collection[Value] = (),
) -> dict[Value, Layout]:
    """The layouts of all values of a program, those of its regions and constants too.

    Args:
        graph: the program; it is not changed.
        given: layouts that are kept as they are, of inputs or of any other values.
        mesh: whose axes they name.
        first: those of `given` that are spread to the end before the others: batches, as a rule. Without it,
            where a batch and a parameter want the same axis, the larger array has it.
        yielding: those of `given` that give way where a loop or a call makes one array of them and others;
            of such the first ones hold.

    Returns:
        Of each value a layout that divides it and is not partial. A loop's carry, what it begins with and
        what the loop returns lie alike; so do an array that a loop cuts along its leading dimension, without
        this one, and its slices. What `jax.shard_map` reads lies as its `in_specs` say, unless something is
        given for it; its regions see parts, which are whole to them. `with_sharding_constraint`s hold.

    Raises:
        ValueError: a given layout is partial, is for another number of dimensions, names an axis twice or one
            that the mesh does not have, or does not divide; or two are given for one array of a loop.

    Example:
        >>> import jax
        >>> from lepton_jax.ir import trace
        >>> shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((8, 16), (16, 32), (32, 16))]
        >>> graph = trace(lambda x, w, v: jax.nn.relu(x @ w) @ v, *shapes)
        >>> x, w, v = graph.inputs
        >>> found = propagate(graph, {x: Layout((("data",), ())), w: Layout(((), ("model",)))},
        ...                   MeshSpec.of("data=2,model=4", chip="v5e"))
        >>> str(found[graph.outputs[0]]), str(found[v])
        ('[data, -]', '[model, -]')
    """
    ties = Ties(graph)
    spread = Spread(ties.ndim, {axis.name: axis.size for axis in mesh.axes})
    for each in ties.graphs:
        for node in each:
            if not node.regions:
                spread.add(node, ties.number)
    for group, cut in enumerate(ties.cut):
        spread.fixed[group].update(cut)
    _give(spread, ties, given, mesh, frozenset(yielding))
    silent = {ties.number[value] for value in given if value in ties.number}
    for demand in demands(ties.graphs, ties.closed, mesh):
        _ask(spread, ties, demand)
    early = {ties.number[value] for value in first if value in ties.number}
    if early:
        spread.silent = silent - early
        spread.run(group for group in range(len(ties.groups)) if group not in spread.silent)
    awake, spread.silent = sorted(spread.silent) if early else range(len(ties.groups)), set()
    spread.run(awake)
    return {
        value: Layout(tuple(spread.dims[group][ties.ndim[group] - value.ndim :]))
        for value, group in ties.number.items()
    }


def _give(
    spread: Spread,
    ties: Ties,
    given: Mapping[Value, Layout],
    mesh: MeshSpec,
    yielding: Collection[Value],
) -> None:
    """Fix what is given."""
    said: dict[int, dict[int, Layout]] = {}  # by group and dimension
    for value, layout in sorted(given.items(), key=lambda each: each[0] in yielding):
        what = named(value)
        if layout.partial:
            raise ValueError(f"{layout} of {what} is a part of a sum: no layout that is given can be")
        layout.check(value.shape, mesh, what)
        if value not in ties.number:
            continue
        group = ties.number[value]
        offset = ties.ndim[group] - value.ndim
        own = said.setdefault(group, {})
        known = {place: spread.dims[group][place] for place in own}
        if value in yielding and not _fits(layout, known, offset):
            continue
        for dim, names in enumerate(layout.dims):
            place = offset + dim
            if place in own and spread.dims[group][place] != names:
                raise ValueError(
                    f"{what} is to lie as {layout}, and as {own[place]}: "
                    "a loop or a call makes them one array"
                )
            own[place] = layout
            spread.dims[group][place] = names
            spread.fixed[group].add(place)


def _fits(layout: Layout, known: Mapping[int, Axes], offset: int) -> bool:
    """Whether an array may lie so where some dimensions of its group are known already."""
    own = dict(enumerate(layout.dims, start=offset))
    others = {name for place, names in known.items() if place not in own for name in names}
    return all(known.get(place, names) == names for place, names in own.items()) and others.isdisjoint(
        layout.axes
    )


def _ask(spread: Spread, ties: Ties, demand: Demand) -> None:
    """Let an array lie as a node says, where nothing is given."""
    group = ties.number[demand.value]
    offset = ties.ndim[group] - demand.value.ndim
    used = {name for names in spread.dims[group] for name in names}
    for dim, names in enumerate(demand.dims, start=offset):
        if names is None or dim in spread.fixed[group] or spread.dims[group][dim] or used & set(names):
            continue
        spread.dims[group][dim] = names
        spread.fixed[group].add(dim)
        used.update(names)


def named(value: Value) -> str:
    """What an error calls a value."""
    if value.node is not None:
        return f"the result of {value.node.op}"
    return "a constant" if value.is_const else f"input {value.index}"
