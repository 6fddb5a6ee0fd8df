"""Branches and loops whose course is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import copy_into
from lepton_jax.ir.regions import erase_dead_nodes, slots
from lepton_jax.ir.structure import graph_key
from lepton_jax.rewrite import Pass, PassContext, rewrite
from lepton_jax.rewrite.replacement import write_before


@dataclass(frozen=True)
class ConstantControl(Pass):
    """Replaces branches and loops whose course is known by what they do.

    Before:
        %1 = cond 1 %x { region branch0 {...} region branch1(%x) { sin } };  %2 = scan[length=1] %c %xs {...}
    After:
        %1 = sin %x;  the body of %2 once, on xs[0]

    - a cond whose index is known, or whose branches are all the same, becomes a branch;
    - a scan of length 0 gives its initial carry and empty outputs, one of length 1 its body;
    - a while that is known to stop at once, or after one iteration, likewise.

    Exact.
    """

    name: ClassVar[str] = "constant-control"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Outer nodes first: a branch that is never taken needs no work inside."""
        for inner in graph.graphs():
            for node in list(inner):
                if node.alive and node.op in _RULES:
                    _RULES[node.op](node, ctx)


def _cond(node: Node, ctx: PassContext) -> None:
    index = facts_of(node.operands[0])
    last = len(node.regions) - 1
    if index.low is not None and index.low == index.high:
        taken = min(max(index.low, 0), last)
        if ctx.fire("known-branch", node):
            _replace_by_region(node, taken, node.operands[1:])
        return
    if node.effects:
        return
    keys = {graph_key(region) for region in node.regions}
    if len(keys) == 1 and None not in keys and ctx.fire("same-branches", node):
        _replace_by_region(node, 0, node.operands[1:])


def _replace_by_region(node: Node, region: int, args: list[Value]) -> None:
    assert node.graph is not None
    _replace(node, copy_into(node.regions[region], args, node.graph, node))


def _replace(node: Node, values: list[Value]) -> None:
    for result, value in zip(node.results, values, strict=True):
        result.replace_uses(value)
    assert node.graph is not None
    node.graph.erase(node)


def _scan(node: Node, ctx: PassContext) -> None:
    length = node.params["length"]
    if type(length) is not int or length > 1:
        return
    if not all(v.is_static for v in (*node.operands, *node.results)):
        return
    if length == 0:
        plain = all(isinstance(value.dtype, np.dtype) for value in node.results)
        if plain and ctx.fire("empty-scan", node):
            _empty_scan(node)
    elif ctx.fire("one-trip-scan", node):
        _one_trip_scan(node)


def _empty_scan(node: Node) -> None:
    values: list[Value] = []
    for slot in slots(node):
        if slot.result is None:
            continue
        if slot.operand is not None:
            values.append(node.operands[slot.operand])
            continue
        aval = node.results[slot.result].aval
        values += write_before(rewrite(_empty, shape=aval.shape, dtype=aval.dtype), node, "empty-scan")
    _replace(node, values)


def _empty(*, shape: tuple[int, ...], dtype: Any) -> Any:
    return jnp.zeros(shape, dtype)


def _one_trip_scan(node: Node) -> None:
    args = [
        write_before(rewrite(_first, node.operands[slot.operand]), node, "one-trip-scan")[0]
        if slot.kind == "scanned"
        else node.operands[slot.operand]
        for slot in slots(node)
        if slot.operand is not None
    ]
    assert node.graph is not None
    outputs = copy_into(node.regions[0], args, node.graph, node)
    carry = node.params["num_carry"]
    stacked = [write_before(rewrite(_stack_one, y), node, "one-trip-scan")[0] for y in outputs[carry:]]
    _replace(node, [*outputs[:carry], *stacked])


def _first(xs: Any) -> Any:
    return lax.squeeze(xs, (0,))


def _stack_one(y: Any) -> Any:
    return jnp.expand_dims(y, 0)


def _while(node: Node, ctx: PassContext) -> None:
    cond, body = node.regions
    nc, nb = node.params["cond_nconsts"], node.params["body_nconsts"]
    for_cond, for_body, init = node.operands[:nc], node.operands[nc : nc + nb], node.operands[nc + nb :]
    if node.effects or not all(v.is_static for v in node.operands):
        return
    with _Scratch() as scratch:
        if scratch.is_false(cond, [*for_cond, *init]):
            trips = 0
        else:
            after = scratch.run(body, [*for_body, *init])
            if not scratch.is_false(cond, [*for_cond, *after]) or not scratch.is_true(cond, [*for_cond, *init]):
                return
            trips = 1
    if trips == 0 and ctx.fire("zero-trip-while", node):
        _replace(node, init)
    elif trips == 1 and ctx.fire("one-trip-while", node):
        _replace_by_region(node, 1, [*for_body, *init])


class _Scratch:
    """A throw-away graph in which regions are tried on values of the program."""

    def __init__(self) -> None:
        self.graph = Graph("scratch", [])

    def __enter__(self) -> _Scratch:
        return self

    def __exit__(self, *error: object) -> None:
        erase_dead_nodes(self.graph)

    def run(self, region: Graph, args: list[Value]) -> list[Value]:
        return copy_into(region, args, self.graph, self.graph.ret)

    def is_false(self, region: Graph, args: list[Value]) -> bool:
        return facts_of(self.run(region, args)[0]).high == 0

    def is_true(self, region: Graph, args: list[Value]) -> bool:
        return facts_of(self.run(region, args)[0]).low == 1


_RULES = {"cond": _cond, "scan": _scan, "while": _while}
