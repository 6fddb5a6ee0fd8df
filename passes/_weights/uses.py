"""Where weights are used: by where they come from in the graph, not by layer classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import jax.numpy as jnp

from lepton_jax.ir.binding import Sources, parameters_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import inline_call, is_plain_call
from lepton_jax.ir.shards import axes_of_spec, shard_maps_around
from lepton_jax.passes._weights.dtypes import join_dtypes
from lepton_jax.passes._weights.iterations import same_in_loops
from lepton_jax.passes._weights.lifting import loop_lengths
from lepton_jax.passes._weights.rows import take_rows
from lepton_jax.rewrite import PassContext

OPS: Final = ("dot_general", "conv_general_dilated", "gather")

GEOMETRY: Final = (
    "window_strides",
    "padding",
    "lhs_dilation",
    "rhs_dilation",
    "dimension_numbers",
    "feature_group_count",
    "batch_group_count",
)
"""The parameters that say which elements meet which."""

_CALL: Final = "call-with-weights"


@dataclass(frozen=True)
class WeightUse:
    """An operation that reads a weight and something else.

    Attributes:
        name: the paths of the parameters that the weight is made of, and a number where they are used in
            several places. The same at all shapes of the other inputs.
        node: the operation.
        side: which operand the weight is.
        paths: of the parameters.
        params: their positions.
        axes: in a `shard_map`, the mesh axes along which the devices have different parts of the weight.
    """

    name: str
    node: Node
    side: int
    paths: tuple[str, ...]
    params: frozenset[int]
    axes: tuple[str, ...] = ()

    @property
    def weight(self) -> Value:
        """The weight, as the operation reads it."""
        return self.node.operands[self.side]

    @property
    def other(self) -> Value:
        """What it is combined with: activations, or indices."""
        return self.node.operands[1 - self.side]


def weight_uses(
    graph: Graph, ctx: PassContext, *, shards: bool = False, ops: Sequence[str] = OPS
) -> list[WeightUse]:
    """The operations that use weights, regions included, in program order.

    A weight is an array of floats with two dimensions or more that is made of parameters alone. A function
    that is called in several places with weights is written into its callers: each call has its own.

    Args:
        shards: those in `shard_map`s too, where each device has a part of a weight.
        ops: which operations.
    """
    known = _opened(graph, ctx, shards, ops)
    take_rows(graph, ctx, known)
    join_dtypes(graph, ctx, known)
    found: list[WeightUse] = []
    taken = {site.name for site in ctx.sites if site.done and site.by == ctx.current_pass}
    for node in _in_order(graph):
        if node.op not in ops:
            continue
        sides = [i for i, v in enumerate(node.operands[:2]) if known.get(v)]
        if len(sides) != 1 or not _is_weight(node, sides[0]):
            continue
        (side,) = sides
        other = node.operands[1 - side]
        if node.op != "gather" and (other.is_const or other in known):
            continue  # made of parameters alone: computed once
        params = known[node.operands[side]]
        paths = tuple(ctx.paths[i] for i in sorted(params))
        name = unused_name("+".join(paths), taken)
        taken.add(name)
        found.append(WeightUse(name, node, side, paths, params, _axes(node, params, known)))
    return found


def _axes(node: Node, params: frozenset[int], known: Sources) -> tuple[str, ...]:
    """The mesh axes over which the parts are spread that a weight in a `shard_map` is made of."""
    found: list[str] = []
    for outer in shard_maps_around(node.graph):
        specs = (
            spec
            for spec, v in zip(outer.params["in_specs"], outer.operands, strict=True)
            if known.get(v, frozenset()) & params
        )
        spread = frozenset().union(*map(axes_of_spec, specs))
        found += [axis for axis in outer.params["mesh"].axis_names if axis in spread]
    return tuple(found)


def layers_of(use: WeightUse) -> int:
    """How many weights there are at a use: one for each iteration of the loops over which it differs."""
    graph = use.node.graph
    assert graph is not None
    loops = zip(loop_lengths(graph), same_in_loops(use.weight, graph), strict=True)
    return math.prod(max(length, 1) for length, is_same in loops if not is_same)


def indexed_axis(node: Node) -> int | None:
    """The axis whose rows a gather takes whole, one at a time; None for other gathers."""
    numbers, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
    if len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        return None
    (axis,) = numbers.start_index_map
    shape = node.operands[0].shape
    whole = all(size == n for i, (size, n) in enumerate(zip(sizes, shape, strict=True)) if i != axis)
    return axis if whole and sizes[axis] == 1 else None


def _opened(graph: Graph, ctx: PassContext, shards: bool, ops: Sequence[str]) -> Sources:
    """What is made of parameters, once no function that is called in several places is handed weights."""
    refused: set[Node] = set()
    while True:
        known = parameters_of(graph, ctx.params, named=True, shards=shards)
        calls = [
            node for node in _in_order(graph) if node not in refused and _hides_weights(node, known, ops)
        ]
        if not calls:
            return known
        for node in calls:
            if ctx.fire(_CALL, node):
                inline_call(node)
            else:
                refused.add(node)


def _hides_weights(node: Node, known: Sources, ops: Sequence[str]) -> bool:
    if not is_plain_call(node) or node.own_regions() or not any(known.get(v) for v in node.operands):
        return False
    return any(inner.op in ops for region in node.regions for inner in region.walk())


def unused_name(name: str, taken: set[str]) -> str:
    """The name, with the first number that makes it another than all that are taken."""
    numbered = itertools.chain([name], (f"{name}#{number}" for number in itertools.count(2)))
    return next(each for each in numbered if each not in taken)


def _in_order(graph: Graph) -> Iterator[Node]:
    for node in graph:
        for region in node.regions:
            yield from _in_order(region)
        yield node


def _is_weight(node: Node, side: int) -> bool:
    weight, other = node.operands[side], node.operands[1 - side]
    if weight.ndim < 2 or not weight.is_static or not jnp.issubdtype(weight.dtype, jnp.floating):
        return False
    if node.op == "gather":
        return side == 0
    return bool(weight.dtype == other.dtype)
