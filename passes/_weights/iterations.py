"""Loops in whose iterations a weight is the same, as in one over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.ir.regions import CALLS, slots, trip_count
from lepton_jax.passes._weights.lifting import in_one, lift, loop_lengths
from lepton_jax.rewrite import over_loops, rewrite
from lepton_jax.rewrite.replacement import write_before

_RULE: Final = "observed-value"

_HANDING: Final = CALLS | {"scan", "remat2", "checkpoint"}
"""What hands a value on as it is."""


def same_in_loops(value: Value, graph: Graph) -> tuple[bool, ...]:
    """For each scan that a region stands in, outermost first, whether a value is the same in all iterations.

    Args:
        value: of the region, made of what the loops are handed from outside, not of what they carry.
    """
    found: list[bool] = []
    values = {value}
    while graph.parents:
        node, reached = graph.parents[0], _inputs_below(values)
        fed = [
            (slot.kind, node.operands[slot.operand])
            for slot in slots(node)
            if slot.operand is not None
            and any(node.regions[r] is graph and graph.inputs[i] in reached for r, i in slot.inputs)
        ]
        if node.op == "scan":
            found.insert(0, trip_count(node) > 0 and all(kind == "constant" for kind, _ in fed))
        values = {operand for _, operand in fed}
        assert node.graph is not None
        graph = node.graph
    return tuple(found)


def _inputs_below(values: set[Value]) -> set[Value]:
    """The inputs of a region that values in it are made of."""
    found, work = set(values), list(values)
    for value in work:
        fresh = [] if value.node is None else [v for v in value.node.operands if v not in found]
        found.update(fresh)
        work += fresh
    return {value for value in found if value.node is None and not value.is_const}


def over_iterations(
    states: Sequence[Value], merge: Callable[[Any, Any], Any], tree: Any, same: tuple[bool, ...]
) -> list[Value]:
    """States at the top of the program, stacked over loops, with those of some loops put together.

    Args:
        same: for each loop, outermost first, whether its iterations are to be put together.
    """
    node = states[0].node
    assert node is not None and node.graph is not None
    made = rewrite(_over_iterations, *states, merge=merge, tree=tree, same=same)
    return write_before(made, node.graph.ret, _RULE)


def _over_iterations(
    *arrays: Any, merge: Callable[[Any, Any], Any], tree: Any, same: tuple[bool, ...]
) -> list[Any]:
    gone = [i for i, is_gone in enumerate(same) if is_gone]

    def in_front(array: Any) -> Any:
        moved = jnp.moveaxis(array, gone, range(len(gone)))
        return moved.reshape(math.prod(moved.shape[: len(gone)]), *moved.shape[len(gone) :])

    states = jax.tree.unflatten(tree, [in_front(array) for array in arrays])
    return in_one(states, over_loops(merge, len(same) - len(gone)))


def lift_weight(weight: Value, graph: Graph, same: tuple[bool, ...]) -> Value:
    """A weight at the top of the program, stacked over the loops over which it differs and no others.

    Args:
        same: as of `same_in_loops`.
    """
    while graph.parents and weight.node is None and graph.parents[0].op in _HANDING:
        (node,) = graph.parents
        place = (node.regions.index(graph), weight.index)
        slot = next(slot for slot in slots(node) if place in slot.inputs)
        if slot.operand is None or slot.kind not in ("constant", "argument"):
            break
        assert node.graph is not None
        weight, graph = node.operands[slot.operand], node.graph
    rest = same[: len(loop_lengths(graph))]
    lifted = lift(weight, graph)
    if not any(rest):
        return lifted
    (first,) = over_iterations([lifted], lambda left, _: left, jax.tree.structure(0), rest)
    return first


def lift_sums(values: Sequence[Value], graph: Graph, same: tuple[bool, ...]) -> list[Value]:
    """Sums over what a weight meets, at the top of the program: one for all iterations that share the weight.

    Args:
        same: as of `same_in_loops`.
    """
    lifted = [lift(value, graph) for value in values]
    if not any(same):
        return lifted
    tree = jax.tree.structure([0] * len(lifted))
    return over_iterations(lifted, lambda a, b: jax.tree.map(jnp.add, a, b), tree, same)
