"""What is early in a `shard_map`, in a `shard_map` of its own in front of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from lepton_jax.ir._jax import varying_axes
from lepton_jax.ir.content import VARY
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import inline_call, is_plain_call
from lepton_jax.ir.regions import erase_dead_nodes
from lepton_jax.ir.shards import axes_of_spec, axes_over, context_of, inside_avals
from lepton_jax.passes.loops._parts.piece import Piece, cut
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import write_before


def before_shards(node: Node, values: Sequence[Value], rule: str) -> None:
    """Compute values of a `shard_map`'s body in a `shard_map` in front of it.

    The parts that the devices have of a value become one array: stacked along a new leading axis, which is
    spread over the mesh axes along which the value differs.

    Args:
        node: the `shard_map`, whose region is its own.
        values: of its body, without effects, made of the body's inputs.
        rule: what does it.
    """
    (body,) = node.regions
    for value in values:
        piece, leaves = cut(body, [value])
        places = [None if v.is_const else body.inputs.index(v) for v in leaves]
        specs = [PartitionSpec() if i is None else node.params["in_specs"][i] for i in places]
        axes = tuple(
            axis for axis in node.params["mesh"].axis_names if any(axis in axes_of_spec(s) for s in specs)
        )
        outer = [v if i is None else node.operands[i] for v, i in zip(leaves, places, strict=True)]
        made = rewrite(
            _on_shards,
            *outer,
            piece=Piece(_less_varied(piece.graph, axes)),
            axes=axes,
            specs=tuple(specs),
            context=context_of(node),
        )
        (whole,) = write_before(made, node, rule)
        part = part_of(node, whole, axes, rule)
        assert part.node is not None and part.node.next is not None
        value.replace_uses(varied_as(value, part, part.node.next, rule))
    erase_dead_nodes(body)
    _drop_unread(node)


def _less_varied(graph: Graph, axes: tuple[str, ...]) -> Graph:
    """The same computation, whose values are taken to differ along no other axes."""
    while calls := [node for node in graph.walk() if node.op == "jit" and is_plain_call(node)]:
        for node in calls:  # whose regions others have too
            inline_call(node)
    for node in list(graph.walk()):
        if node.op != VARY or node.graph is None:
            continue
        kept = tuple(axis for axis in node.params["axes"] if axis in axes)
        if kept:
            node.params, node.raw = {**node.params, "axes": kept}, None
        else:
            node.result.replace_uses(node.operands[0])
            node.graph.erase(node)
    return graph


def _on_shards(
    *args: jax.Array, piece: Piece, axes: tuple[str, ...], specs: tuple[Any, ...], context: tuple[Any, ...]
) -> jax.Array:
    mesh, names, checks = context

    def body(*parts: jax.Array) -> jax.Array:
        (value,) = piece(*parts)
        stacked: jax.Array = value[None]
        return stacked

    spread = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec(axes),
        axis_names=set(names),
        check_vma=checks,
    )
    found: jax.Array = spread(*args)
    return found


def varied_as(value: Value, other: Value, before: Node, rule: str) -> Value:
    """A value, made before a node to vary along the mesh axes along which another value varies.

    Args:
        value: that varies.
        other: that is to.
        before: where the result is made.
        rule: what does it.
    """
    wider = tuple(sorted(varying_axes(value.aval) - varying_axes(other.aval)))
    return write_before(rewrite(_varied, other, axes=wider), before, rule)[0] if wider else other


def _varied(x: jax.Array, *, axes: tuple[str, ...]) -> jax.Array:
    found: jax.Array = jax.lax.pcast(x, axes, to="varying")
    return found


def part_of(node: Node, whole: Value, axes: tuple[str, ...], rule: str) -> Value:
    """What a device has of an array whose leading axis runs over some mesh axes, in a `shard_map`'s body.

    Args:
        node: the `shard_map`; it gets one more operand.
        whole: outside of it.
        axes: in the order in which the leading axis runs over them.
        rule: what does it.
    """
    (body,) = node.regions
    spec = PartitionSpec(axes)
    aval = jax.ShapeDtypeStruct(whole.shape, whole.dtype)
    inner = body.add_input(inside_avals(node, [aval], [spec])[0])
    node.set_operands([*node.operands, whole])
    node.params = {**node.params, "in_specs": (*node.params["in_specs"], spec)}
    node.raw = None
    (part,) = write_before(rewrite(_first, inner), next(iter(body), body.ret), rule)
    return part


def _first(x: jax.Array) -> jax.Array:
    return jax.lax.squeeze(x, (0,))


def parts_together(node: Node, values: Sequence[Value], rule: str) -> list[Value]:
    """What all devices have of values of a `shard_map`'s body: stacked along a new leading axis, outside.

    The axis runs over the mesh axes of the `shard_map`, in their order. The node gets more results.
    """
    (body,) = node.regions
    axes = axes_over(node)
    stacked: list[Value] = []
    for value in values:
        missing = tuple(sorted(set(axes) - varying_axes(value.aval))) if node.params["check_vma"] else ()
        stacked += write_before(rewrite(_stacked, value, axes=missing), body.ret, rule)
    body.set_outputs([*body.outputs, *stacked])
    spec = PartitionSpec(axes)
    node.params = {**node.params, "out_specs": (*node.params["out_specs"], *[spec] * len(stacked))}
    count = math.prod(dict(node.params["mesh"].shape)[axis] for axis in axes)
    made = [
        Value(jax.typeof(jax.ShapeDtypeStruct((count, *v.shape[1:]), v.dtype)), node, len(node.results) + i)
        for i, v in enumerate(stacked)
    ]
    node.set_results([*node.results, *made])
    node.raw = None
    return made


def _stacked(x: jax.Array, *, axes: tuple[str, ...]) -> jax.Array:
    return (jax.lax.pcast(x, axes, to="varying") if axes else x)[None]


def _drop_unread(node: Node) -> None:
    """Leave out the operands whose parts nobody reads."""
    (body,) = node.regions
    kept = [i for i, value in enumerate(body.inputs) if value.uses]
    if len(kept) == len(body.inputs):
        return
    body.remove_inputs(set(range(len(body.inputs))) - set(kept))
    node.set_operands([node.operands[i] for i in kept])
    node.params = {**node.params, "in_specs": tuple(node.params["in_specs"][i] for i in kept)}
    node.raw = None
