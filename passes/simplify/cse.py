"""Common subexpression elimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.regions import add_constant, editable, outer_of
from lepton_jax.ir.structure import node_key
from lepton_jax.rewrite import Pass, PassContext

Scope = dict[Any, Node]


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

    `optimization_barrier` and the bodies of differentiated checkpoints are left alone:
    there the second computation is meant.
    """

    name: ClassVar[str] = "cse"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """One sweep in program order, regions with what is known outside them."""
        _Sweep(ctx).graph(graph)


_MEANT = frozenset({"optimization_barrier", "rng_uniform", "create_token", "after_all"})
_CLOSED = frozenset({"remat2", "checkpoint"})
"""Regions that must not read more from outside: recomputing is their purpose."""


class _Sweep:
    def __init__(self, ctx: PassContext) -> None:
        self.ctx = ctx
        self.done: set[Graph] = set()

    def graph(self, graph: Graph) -> None:
        """Merge equal nodes of a graph."""
        self.done.add(graph)
        known: Scope = {}
        for node in graph:
            if node.effects or node.op in _MEANT:
                self.regions(node, known)
                continue
            key = node_key(node)
            twin = None if key is None else known.get(key)
            if twin is not None:
                self.merge(node, twin)
                continue
            if key is not None:
                known[key] = node
            self.regions(node, known)

    def merge(self, node: Node, twin: Node) -> None:
        if not self.ctx.fire("same-node", node):
            return
        for value, other in zip(node.results, twin.results, strict=True):
            value.replace_uses(other)
        assert node.graph is not None
        node.graph.erase(node)

    def regions(self, node: Node, known: Scope) -> None:
        for index, region in enumerate(node.regions):
            if region in self.done:
                continue
            self.graph(region)
            if editable(node) and node.op not in _CLOSED:
                self.read_outer(node, index, region, known)

    def read_outer(self, node: Node, index: int, region: Graph, known: Scope) -> None:
        """Let a region read what was computed outside from the same operands."""
        same = outer_of(node, region)
        for inner in list(region):
            if inner.effects or inner.regions or len(inner.results) != 1 or not inner.alive:
                continue
            if not inner.operands or not all(v in same or v.is_const for v in inner.operands):
                continue
            twin = known.get(node_key(inner, same))
            if twin is None or not self.ctx.fire("same-as-outside", inner):
                continue
            captured = add_constant(node, index, twin.result)
            inner.result.replace_uses(captured)
            region.erase(inner)
            same[captured] = twin.result
