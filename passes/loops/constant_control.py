"""Branches and loops whose course is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir import _jax
from lepton_jax.ir.facts import Facts, facts_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import copy_into, copy_node
from lepton_jax.ir.regions import CALLS, LOOPS, erase_dead_nodes, slots
from lepton_jax.ir.structure import graph_key
from lepton_jax.rewrite import Pass, PassContext, rewrite
from lepton_jax.rewrite.replacement import write_before

_RUNNING: Final = LOOPS | CALLS | {"cond", "checkpoint", "remat2"}
"""Operations that have no effects but those of what they run."""


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
        graphs = {graph: None}
        queue = [graph]
        for inner in queue:
            _simplify(inner, ctx)
            for region in (region for node in inner for region in node.regions):
                if region not in graphs:
                    graphs[region] = None
                    queue.append(region)


def _simplify(graph: Graph, ctx: PassContext) -> None:
    """Replace the nodes of one graph whose course is known, and those that come in their place."""
    node = next(iter(graph), graph.ret)
    while node is not graph.ret:
        before = node.prev
        if node.regions and node.op in _RULES:
            _RULES[node.op](node, ctx)
        after = node.next if node.alive or before is None else before.next
        assert after is not None
        node = after


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
    _replace(node, _write_region(node, region, args))


def _write_region(node: Node, region: int, args: list[Value]) -> list[Value]:
    """Write the nodes of a region before its node, under the node's name stack; returns its outputs there."""
    assert node.graph is not None
    before = node.prev
    outputs = copy_into(node.regions[region], args, node.graph, node)
    fresh = node.prev
    while fresh is not before and fresh is not None:
        if fresh.source is not None and node.source is not None:
            fresh.source = _jax.inlined_source(fresh.source, node.source, None)
        fresh = fresh.prev
    return outputs


def _replace(node: Node, values: list[Value]) -> None:
    for result, value in zip(node.results, values, strict=True):
        result.renew_facts()
        result.replace_uses(value)
    graph = node.graph
    assert graph is not None
    graph.erase(node)
    if node.effects:
        _settle_effects(graph)


def _settle_effects(graph: Graph) -> None:
    """Take the effects from the nodes that run a graph, once nothing that they run has any."""
    for parent in graph.parents:
        inside = (node for region in parent.regions for node in region)
        if parent.op in _RUNNING and parent.effects and not any(node.effects for node in inside):
            parent.effects = frozenset()
            parent.touch()
            if parent.graph is not None:
                _settle_effects(parent.graph)


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
    outputs = _write_region(node, 0, args)
    carry = node.params["num_carry"]
    stacked = [write_before(rewrite(_stack_one, y), node, "one-trip-scan")[0] for y in outputs[carry:]]
    _replace(node, [*outputs[:carry], *stacked])


def _first(xs: Any) -> Any:
    return lax.squeeze(xs, (0,))


def _stack_one(y: Any) -> Any:
    return jnp.expand_dims(y, 0)


def _while(node: Node, ctx: PassContext) -> None:
    nc, nb = node.params["cond_nconsts"], node.params["body_nconsts"]
    for_cond, for_body, init = node.operands[:nc], node.operands[nc : nc + nb], node.operands[nc + nb :]
    if node.effects or not all(v.is_static for v in node.operands):
        return
    with _Scratch() as scratch:
        trips = _trips(scratch, node, [*for_cond, *init], [*for_body, *init])
    if trips == 0 and ctx.fire("zero-trip-while", node):
        _replace(node, init)
    elif trips == 1 and ctx.fire("one-trip-while", node):
        _replace_by_region(node, 1, [*for_body, *init])


def _trips(scratch: _Scratch, node: Node, for_cond: list[Value], for_body: list[Value]) -> int | None:
    """How often a while runs its body if that is known to be 0 or 1, otherwise None.

    Args:
        for_cond: what its cond reads first.
        for_body: what its body reads first.
    """
    cond, body = node.regions
    first = scratch.facts(cond, for_cond)
    if first.high == 0:
        return 0
    if first.low != 1:
        return None
    consts = node.params["cond_nconsts"]
    tested = [i for i, value in enumerate(cond.inputs[consts:]) if value.uses]
    after = scratch.run(body, for_body, tested)
    if after is None:
        return None
    known = dict(zip(tested, after, strict=True))
    again = [known.get(i, value) for i, value in enumerate(for_cond[consts:])]
    return 1 if scratch.facts(cond, [*for_cond[:consts], *again]).high == 0 else None


class _Scratch:
    """A throw-away graph in which regions are tried on values of the program."""

    def __init__(self) -> None:
        self.graph = Graph("scratch", [])

    def __enter__(self) -> _Scratch:
        return self

    def __exit__(self, *error: object) -> None:
        erase_dead_nodes(self.graph)

    def run(self, region: Graph, args: list[Value], wanted: list[int]) -> list[Value] | None:
        """Some outputs of a region on `args`; None if they take more than plain operations."""
        outputs = [region.outputs[i] for i in wanted]
        needed = _makers(outputs)
        if any(node.regions for node in needed):
            return None
        known = dict(zip(region.inputs, args, strict=True))
        for node in region:
            if node in needed:
                copy = copy_node(node, [known.get(value, value) for value in node.operands])
                self.graph.append(copy)
                known.update(zip(node.results, copy.results, strict=True))
        return [known.get(value, value) for value in outputs]

    def facts(self, cond: Graph, args: list[Value]) -> Facts:
        """What is known about the only output of a region on `args`."""
        results = self.run(cond, args, [0])
        return Facts() if results is None else facts_of(results[0])


def _makers(values: list[Value]) -> set[Node]:
    """The nodes of a graph that values are made of."""
    found: set[Node] = set()
    stack = [value.node for value in values]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found.add(node)
            stack += [value.node for value in node.operands]
    return found


_RULES: Final = {"cond": _cond, "scan": _scan, "while": _while}
