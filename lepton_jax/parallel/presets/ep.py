"""`ep`: each device holds some of the experts; tokens go to them and come back.

GShard (Lepikhin et al., 2020, arXiv 2006.16668).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from lepton_jax.ir.graph import Value
from lepton_jax.parallel.factors.elementwise import ELEMENTWISE
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.presets.arrangement import Arrangement, Axes, PresetError, Work
from lepton_jax.parallel.presets.batch import find_batch, pin_batch, split_batch
from lepton_jax.parallel.presets.origins import Origins, origins_of
from lepton_jax.parallel.presets.together import Dim, Together, Use


def arrange(work: Work) -> Arrangement:
    """Split the experts, and the batch over the same devices and those that are left.

    Raises:
        PresetError: there are no experts, or their number does not divide.
    """
    axes = work.axes.expert()
    batch = find_batch(work)
    pin_batch(work, batch, split_batch(work, batch, work.axes.batch()))
    parts = work.mesh.size(*axes)
    origins = origins_of(work)
    alone = work.together(1)
    found = list(_experts(work, alone, origins))
    found += _beside(work, alone, origins, found)
    if not found:
        raise PresetError(
            "shard='ep' finds no experts: no parameter has a leading dimension that a product keeps in both "
            "operands, that a ragged product counts in groups, or that is looked up by index"
        )
    together = work.together(parts)
    params: dict[int, Layout] = {}
    for position, dim, _ in found:
        value = work.graph.inputs[position]
        if value.shape[dim] % parts:
            work.note(
                work.roles.paths[position],
                f"over {'+'.join(axes)}: {value.shape[dim]} experts do not divide by {parts}",
            )
            continue
        params[position] = Layout(tuple(axes if d == dim else () for d in range(value.ndim)))
    if not params:
        raise PresetError(f"shard='ep' splits nothing: {work.notes[-1]}")
    tokens: dict[Value, Layout] = {}
    for position, dim, use in found:
        expert = together.of(work.graph.inputs[position], dim)
        if use.node.op == "dot_general" and expert is not None:
            tokens |= {
                value: _by_experts(work, together, expert, value, axes)
                for value, _ in use.arrays()
                if value not in origins
            }
    work.layouts |= _along(work, tokens)
    return work.finished(params)


def _by_experts(work: Work, together: Together, expert: Dim, value: Value, axes: Axes) -> Layout:
    """How what an expert reads and writes lies: by experts, and by the batch over the axes that are left."""
    before = work.layouts.get(value, Layout.whole(value.ndim)).dims
    return Layout(
        tuple(
            axes
            if together.of(value, dim) == expert
            else tuple(name for name in before[dim] if name not in axes)
            for dim in range(value.ndim)
        )
    )


def _along(work: Work, tokens: Mapping[Value, Layout]) -> dict[Value, Layout]:
    """The same layouts for what is computed of these element by element, in and out of loops too."""
    alike: dict[Value, list[tuple[Value, int]]] = {}
    for use in work.program.uses:
        if use.node.op in ELEMENTWISE:
            same = [value for value, _ in use.arrays() if value.shape == use.node.results[0].shape]
            for value in same:
                alike.setdefault(value, []).extend((other, 0) for other in same)
    for (one, i), (other, j) in work.program.ties:
        alike.setdefault(one, []).append((other, j - i))
        alike.setdefault(other, []).append((one, i - j))
    found, waiting = dict(tokens), list(tokens)
    while waiting:
        value = waiting.pop()
        dims = found[value].dims
        for other, more in alike.get(value, ()):
            if other not in found and not other.is_const:
                found[other] = Layout((((),) * more + dims)[max(-more, 0) :])
                waiting.append(other)
    return found


def _experts(work: Work, together: Together, origins: Origins) -> Iterator[tuple[int, int, Use]]:
    """Parameters with a dimension of experts: position, dimension, and the operation that reads it."""
    for use in work.program.uses:
        for k, (value, dims) in enumerate(zip(use.node.operands, use.operands, strict=True)):
            if value not in origins:
                continue
            position, places = origins[value]
            for dim in _dims_of_experts(use, k, value, dims):
                origin = places[dim]
                if origin >= 0 and together.find((work.graph.inputs[position], origin)) not in together.fixed:
                    yield position, origin, use


def _beside(
    work: Work, together: Together, origins: Origins, found: Collection[tuple[int, int, Use]]
) -> Iterator[tuple[int, int, Use]]:
    """Other parameters of these experts: the first product has no batch of them where all see every token."""
    known = {together.find((work.graph.inputs[position], dim)) for position, dim, _ in found}
    taken = {(position, dim) for position, dim, _ in found}
    for use in work.program.uses:
        if use.node.op != "dot_general":
            continue
        for value in use.node.operands:
            position, places = origins.get(value, (-1, ()))
            for origin in places if value.ndim > 2 else ():
                if origin < 0 or (position, origin) in taken:
                    continue
                if together.find((work.graph.inputs[position], origin)) in known:
                    yield position, origin, use


def _dims_of_experts(use: Use, k: int, value: Value, dims: tuple[tuple[int, ...], ...]) -> list[int]:
    node = use.node
    if node.op == "dot_general":
        batch = node.params["dimension_numbers"][1][k]
        return list(batch[:1]) if value.ndim > 2 else []
    if node.op == "ragged_dot_general" and k == 1:
        return list(node.params["ragged_dot_dimension_numbers"].rhs_group_dimensions[:1])
    if node.op == "gather" and k == 0 and value.ndim > 2:
        return [dim for dim in node.params["dimension_numbers"].start_index_map if dims[dim]][:1]
    return []
