"""Values of a region out to the top of the program, and arrays from there into a region."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import add_constant, editable, trip_count
from lepton_jax.ir.shards import axes_over, shard_maps_around
from lepton_jax.passes.loops._parts.scan import add_scanned, add_stacked, is_plain_scan
from lepton_jax.passes.loops._parts.shards import part_of, parts_together, varied_as
from lepton_jax.rewrite import PassContext, over_loops, rewrite
from lepton_jax.rewrite.replacement import Rewrite, write_before

_ONCE: Final = frozenset({"jit", "closed_call", "core_call", "remat2", "checkpoint", "cond"})

_RULE: Final = "observed-value"


def in_branch(graph: Graph) -> bool:
    """Whether a region stands in a branch, which need not be taken."""
    while graph.parents:
        if graph.parents[0].op == "cond":
            return True
        assert graph.parents[0].graph is not None
        graph = graph.parents[0].graph
    return False


def top(graph: Graph) -> Graph:
    """The whole program that a region stands in."""
    while graph.parents:
        inner = graph.parents[0].graph
        assert inner is not None
        graph = inner
    return graph


def loop_lengths(graph: Graph | None) -> tuple[int, ...]:
    """The lengths of the scans that a region stands in, outermost first."""
    lengths: list[int] = []
    while graph is not None and graph.parents:
        node = graph.parents[0]
        if node.op == "scan":
            lengths.insert(0, trip_count(node))
        graph = node.graph
    return tuple(lengths)


def depth(graph: Graph, *, shards: bool = False) -> int | str:
    """How many loops a region stands in, or why nothing can be handed out of it or into it.

    Args:
        shards: a `shard_map` counts as a loop over its devices.
    """
    loops = 0
    if len(shard_maps_around(graph)) > 1:
        return "it is in a shard_map in a shard_map"
    while graph.parents:
        if len(graph.parents) > 1:
            return "it is in a function that is called in several places"
        (node,) = graph.parents
        on_shards = shards and node.op == "shard_map" and node.own_regions()
        if on_shards or (node.op == "scan" and is_plain_scan(node)):
            loops += 1
        elif node.op not in _ONCE or not editable(node):
            return f"it is in a {node.op}"
        assert node.graph is not None
        graph = node.graph
    return loops


def _never(value: Value) -> Rewrite:
    raise AssertionError(f"{value} stands in a branch")


def lift_states(
    states: Sequence[Value],
    graph: Graph,
    nothing: Callable[[int, Value], Rewrite],
    merge: Callable[[Any, Any], Any],
    tree: Any,
    axes: tuple[str, ...],
) -> list[Value]:
    """The arrays of a state of a region at the top of the program, as `lift` has them.

    In a `shard_map`, states are merged over the mesh axes along which the weight is the same, and stacked
    over the others.

    Args:
        nothing: what a branch that is not taken returns in place of an array, by its place in the state.
        merge: two states.
        tree: the structure of a state.
        axes: the mesh axes along which the weight differs.
    """
    around = shard_maps_around(graph)
    if not around:
        return [lift(v, graph, functools.partial(nothing, i)) for i, v in enumerate(states)]
    (node,) = around
    inner = [lift(v, graph, functools.partial(nothing, i), node.regions[0]) for i, v in enumerate(states)]
    loops = len(loop_lengths(graph)) - len(loop_lengths(node.graph))
    outside = parts_together(node, inner, _RULE)
    mesh = dict(node.params["mesh"].shape)
    sizes = tuple((mesh[axis], axis in axes) for axis in axes_over(node))
    made = rewrite(_merged, *outside, merge=merge, tree=tree, sizes=sizes, loops=loops)
    assert node.graph is not None and node.next is not None
    return [
        lift(v, node.graph, functools.partial(nothing, i))
        for i, v in enumerate(write_before(made, node.next, _RULE))
    ]


def _merged(
    *arrays: Any, merge: Callable[[Any, Any], Any], tree: Any, sizes: tuple[tuple[int, bool], ...], loops: int
) -> list[Any]:
    """States of all devices, merged over some mesh axes: one for each place along the others."""
    kept = [i for i, (_, is_kept) in enumerate(sizes) if is_kept]
    gone = [i for i in range(len(sizes)) if i not in kept]
    count = math.prod(sizes[i][0] for i in gone)

    def by_device(array: Any) -> Any:
        rest = array.shape[1:]
        spread = array.reshape(*(size for size, _ in sizes), *rest)
        order = (*gone, *kept, *range(len(sizes), spread.ndim))
        return spread.transpose(order).reshape(count, -1, *rest)

    states = jax.tree.unflatten(tree, [by_device(array) for array in arrays])
    return in_one(states, over_loops(merge, loops + 1))


def in_one(states: Any, together: Callable[[Any, Any], Any]) -> list[Any]:
    """States that are stacked along the first axis, put together in order."""
    first = jax.tree.map(lambda array: array[0], states)
    total, _ = jax.lax.scan(
        lambda sofar, each: (together(sofar, each), None), first, jax.tree.map(lambda a: a[1:], states)
    )
    return jax.tree.leaves(total)


def lift(
    value: Value,
    graph: Graph,
    nothing: Callable[[Value], Rewrite] = _never,
    until: Graph | None = None,
) -> Value:
    """A value of a region at the top of the program, stacked over the loops it stands in, outermost first.

    Args:
        nothing: what a branch that is not taken returns in place of a value; left out where there is none.
        until: a region around it, to stop at.
    """
    while graph.parents and graph is not until:
        (node,) = graph.parents
        value = add_stacked(node, value) if node.op == "scan" else _add_result(node, value, graph, nothing)
        assert node.graph is not None
        graph = node.graph
    return value


def _add_result(node: Node, value: Value, graph: Graph, nothing: Callable[[Value], Rewrite]) -> Value:
    for region in node.regions:
        found = value
        if region is not graph:
            (empty,) = write_before(nothing(value), region.ret, _RULE)
            found = varied_as(value, empty, region.ret, _RULE)
        region.set_outputs([*region.outputs, found])
    result = Value(value.aval, node, len(node.results))
    node.set_results([*node.results, result])
    node.raw = None
    return result


def lower(
    array: Any,
    path: str,
    graph: Graph,
    ctx: PassContext,
    axes: tuple[str, ...] = (),
    same: tuple[bool, ...] = (),
) -> Value:
    """An array as a value of a region; its leading axes run over the loops that the region stands in.

    Args:
        path: what the array is called among the program's inputs.
        axes: the mesh axes that the leading axis for a `shard_map` runs over.
        same: for each scan, outermost first, whether it is the same in all iterations and has no axis for it.
    """
    if not graph.parents:
        return ctx.add_input(graph, array, path)
    (node,) = graph.parents
    assert node.graph is not None
    if same and node.op == "scan":
        outer = lower(array, path, node.graph, ctx, axes, same[:-1])
        if same[-1]:
            return add_constant(node, 0, outer)
    else:
        outer = lower(array, path, node.graph, ctx, axes, same)
    if node.op == "shard_map":
        return part_of(node, outer, axes, _RULE)
    if node.op != "scan":
        return add_constant(node, node.regions.index(graph), outer)
    inner = jax.typeof(jax.ShapeDtypeStruct(outer.shape[1:], outer.dtype))
    return add_scanned(node, outer, Value(inner))


def found_by_calibration(
    name: str,
    kind: str,
    graph: Graph,
    ctx: PassContext,
    axes: tuple[str, ...] = (),
    same: tuple[bool, ...] = (),
) -> list[Value]:
    """What calibration found or training learned at a site, as values of a region, if anything.

    Args:
        name: of the site.
        kind: of what was found.
        axes: the mesh axes that its leading axis for a `shard_map` runs over.
        same: as in `lower`.
    """
    arrays = ctx.calibration.get((name, kind), ())
    paths = (f"calibration/{name}/{kind}/{i}" for i in range(len(arrays)))
    return [lower(array, path, graph, ctx, axes, same) for array, path in zip(arrays, paths, strict=False)]
