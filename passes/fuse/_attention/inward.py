"""Masks and biases that a loop reads from outside, computed in it, where blocks of them are enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import copy_node
from lepton_jax.ir.regions import add_constant, editable, inside, outer_of
from lepton_jax.passes.fuse._attention.axes import ELEMENTWISE, MOVES, Labels, operand_labels
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.fuse._attention.program import Builder
from lepton_jax.passes.fuse._attention.region import Region

_DEAR: Final = frozenset(
    [
        "atan2",
        "cbrt",
        "cos",
        "cosh",
        "erf",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "logistic",
        "pow",
        "sin",
        "sinh",
        "tan",
        "tanh",
    ]
)
"""What costs more to compute again in every layer than to read."""

_MADE: Final = (ELEMENTWISE - _DEAR) | MOVES | {"iota"}


def outer_value(value: Value) -> Value | None:
    """The value outside that an input of a region holds on every run, None where there is none."""
    graph = value.graph
    if value.node is not None or graph is None or len(graph.parents) != 1:
        return None
    (parent,) = graph.parents
    if parent.graph is None or not editable(parent):
        return None
    return outer_of(parent, graph).get(value)


def bring_in(found: Found, region: Region) -> bool:
    """Compute in the loop every [queries × keys] array from outside that the scores or gradients read.

    Only cheap elementwise operations and moves are repeated, down to what is smaller; whether anything was.
    """
    wanted = {v: m for v, m in zip(found.builder.values, found.builder.labels, strict=True) if None not in m}
    for value, marks in region.labels.items():
        for user in value.users():
            wanted |= _beside(user, value, marks, region)
    return any([_bring(value, marks) for value, marks in wanted.items()])


def _beside(user: Node, value: Value, marks: Labels, region: Region) -> dict[Value, Labels]:
    """What an elementwise operation reads beside a [queries × keys] array."""
    if user.op not in ELEMENTWISE or user.result.shape != value.shape:
        return {}
    found = operand_labels(user, marks) or []
    pairs = zip(user.operands, found, strict=False)
    return {v: m for v, m in pairs if None not in m and v not in region.labels}


def _bring(value: Value, marks: Labels) -> bool:
    graph, outer = value.graph, outer_value(value)
    if graph is None or outer is None or not value.uses:
        return False
    if outer.is_const:
        value.replace_uses(outer)
        return True
    if outer.node is None and not _bring(outer, marks):
        return False
    (parent,) = graph.parents
    outer = outer_of(parent, graph)[value]
    builder = Builder()
    place = builder.add(outer, marks)
    if place[0] == "leaf" or any(node.op not in _MADE for node, _, _ in builder.steps):
        return False
    made: dict[Value, Value] = {}
    first = next(iter(graph))
    for node in dict.fromkeys(node for node, _, _ in builder.steps):
        copy = copy_node(node, [_inner(v, made, parent, graph) for v in node.operands])
        graph.insert(copy, first)
        made[node.result] = copy.result
    value.replace_uses(made[outer])
    return True


def _inner(value: Value, made: dict[Value, Value], parent: Node, graph: Graph) -> Value:
    """The value of the region that holds an outer one."""
    if value.is_const:
        return value
    if value not in made:
        known: Iterator[Value] = (v for v in inside(parent, value) if v in graph.inputs)
        made[value] = next(known, None) or add_constant(parent, parent.regions.index(graph), value)
    return made[value]
