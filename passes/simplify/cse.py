"""Common subexpression elimination."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import add_constant, editable, outer_of
from lepton_jax.ir.structure import node_key
from lepton_jax.rewrite import Pass, PassContext


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Computes once what is computed twice.

    Before:
        %2 = sin %0;  %3 = sin %0;  %4 = add %2 %3
    After:
        %2 = sin %0;  %4 = add %2 %2

    Operands of commutative operations count as equal in either order. Whole loops,
    branches and calls are compared by structure. A region that computes again what was
    computed outside before it reads the outer value instead. Exact.

    What is larger than what it is made of is computed again in a region: cheaper than to keep it.

    `optimization_barrier`, draws from a hidden random state and the bodies of differentiated checkpoints
    are left alone: there the second computation is meant.
    """

    name: ClassVar[str] = "cse"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """One sweep in program order, regions with what is known outside them."""
        _Sweep(ctx).graph(graph, {})


Scope = dict[Any, Node]
"""Nodes that were met, by what they compute."""

_MEANT: Final = frozenset({"optimization_barrier", "rng_uniform", "create_token", "after_all"})
_REMAT: Final = frozenset({"remat2", "checkpoint"})
"""Regions that must not read more from outside: recomputing is their purpose."""


class _Sweep:
    """One sweep over a program.

    Attributes:
        same: values of regions, each with the outermost value known to be the same.
        done: the graphs that were swept.
        meant: whether graphs hold nodes that are meant to run as often as they stand there.
    """

    def __init__(self, ctx: PassContext) -> None:
        self.ctx = ctx
        self.same: dict[Value, Value] = {}
        self.done: set[Graph] = set()
        self.meant: dict[Graph, bool] = {}

    def graph(self, graph: Graph, outside: Scope) -> dict[Node, Value]:
        """Merge equal nodes of a graph.

        Args:
            outside: the nodes before the node whose region the graph is.

        Returns:
            Its nodes whose result is known outside, with the value there.
        """
        self.done.add(graph)
        known: Scope = {}
        found: dict[Node, Value] = {}
        for node in graph:
            if self.is_meant(node):
                self.read_outside(node, self.regions(node, known))
                continue
            keys = [node_key(node, self.same)]
            elsewhere: list[dict[Node, Value]] = []
            if keys[0] not in known and not self.done.issuperset(node.regions):
                elsewhere = self.regions(node, known)
                keys.append(node_key(node, self.same))
            keys = [key for key in keys if key is not None]
            if any(key in known and self.merge(node, known[key]) for key in keys):
                continue
            self.read_outside(node, elsewhere)
            for key in keys:
                known.setdefault(key, node)
                if key in outside and _is_simple(node):
                    found[node] = value = outside[key].result
                    self.same[node.result] = self.same.get(value, value)
        return found

    def is_meant(self, node: Node) -> bool:
        """Whether running a node twice is not the same as running it once."""
        return bool(node.effects) or node.op in _MEANT or any(map(self.holds_meant, node.regions))

    def holds_meant(self, region: Graph) -> bool:
        """Whether a node of a region is meant."""
        if region not in self.meant:
            self.meant[region] = any(map(self.is_meant, region))
        return self.meant[region]

    def merge(self, node: Node, twin: Node) -> bool:
        """Let the readers of a node read its twin."""
        if not self.ctx.fire("same-node", node):
            return False
        for value, other in zip(node.results, twin.results, strict=True):
            value.replace_uses(other)
        assert node.graph is not None
        node.graph.erase(node)
        return True

    def regions(self, node: Node, known: Scope) -> list[dict[Node, Value]]:
        """Merge equal nodes of a node's regions; returns for each region what is known outside."""
        if node.op in _REMAT and node.params.get("differentiated"):
            return []
        own = editable(node)
        outside = known if own and node.op not in _REMAT else {}
        found: list[dict[Node, Value]] = []
        for region in node.regions:
            if region in self.done:
                found.append({})
                continue
            if own:
                self.same.update((v, self.same.get(o, o)) for v, o in outer_of(node, region).items())
            found.append(self.graph(region, outside))
        return found

    def read_outside(self, node: Node, elsewhere: list[dict[Node, Value]]) -> None:
        """Let a node's regions read what was computed outside, last nodes first: others then need not."""
        for index, found in enumerate(elsewhere):
            region = node.regions[index]
            given = {outer: inner for inner, outer in outer_of(node, region).items()} if found else {}
            for inner in reversed(found):
                value = found[inner]
                if inner.result.uses:
                    if value not in given and not _is_worth_keeping(inner):
                        continue
                    if not self.ctx.fire("same-as-outside", inner):
                        continue
                    if value not in given:
                        given[value] = add_constant(node, index, value)
                    inner.result.replace_uses(given[value])
                region.erase(inner)


def _is_simple(node: Node) -> bool:
    """Whether it is one operation with one result that is read."""
    return not node.regions and len(node.results) == 1 and bool(node.result.uses)


def _is_worth_keeping(node: Node) -> bool:
    """Whether a node's result is no larger than what it is made of."""
    if not all(value.is_static for value in (*node.operands, node.result)):
        return False
    return bool(math.prod(node.result.shape) <= max((math.prod(v.shape) for v in node.operands), default=0))
