"""Passes that are wrong, each in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.inline import copy_into
from lepton_jax.rewrite import Pass, PassContext, rewrite, run_rules
from lepton_jax.rewrite.rule import Outcome, node_rule

NEG = jax.make_jaxpr(jnp.negative)(1.0).eqns[0].primitive


def difference(x: Any, y: Any) -> Any:
    return jnp.subtract(x, y)


@node_rule("add")
def add_to_sub(node: Node, ctx: PassContext) -> Outcome:
    """x + y → x - y"""
    return rewrite(difference, *node.operands)


@dataclass(frozen=True)
class Subtracts(Pass):
    name: ClassVar[str] = "subtracts"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        run_rules(graph, [add_to_sub], ctx)


@dataclass(frozen=True)
class ForgetsRules(Pass):
    name: ClassVar[str] = "forgets-rules"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in list(graph.walk()):
            if node.op == "custom_jvp_call" and node.graph is not None and ctx.fire("forget", node):
                outputs = copy_into(node.regions[0], node.operands, node.graph, node)
                for old, new in zip(node.results, outputs, strict=True):
                    old.replace_uses(new)
                node.graph.erase(node)


@dataclass(frozen=True)
class ForgetsEffects(Pass):
    name: ClassVar[str] = "forgets-effects"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in list(graph):
            if node.op == "io_callback" and ctx.fire("forget", node):
                graph.erase(node)


@dataclass(frozen=True)
class NeverDone(Pass):
    name: ClassVar[str] = "never-done"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in list(graph):
            if node.op == "sin" and ctx.fire("again", node):
                node.set_operand(
                    0, graph.insert(Node("neg", NEG, node.operands, [node.operands[0].aval], {}), node).result
                )


@dataclass(frozen=True)
class Raises(Pass):
    name: ClassVar[str] = "raises-on-sin"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        if any(node.op == "sin" for node in graph.walk()):
            raise ArithmeticError("a sine")


@dataclass(frozen=True)
class LeavesItBroken(Pass):
    name: ClassVar[str] = "leaves-it-broken"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in list(graph):
            if node.op == "sin" and node.prev is not None and ctx.fire("move", node):
                graph.move(node, next(iter(graph)))


def sums_reordered(x: Any) -> Any:
    return jnp.sum(x[::-1])


@node_rule("reduce_sum", level="reassociate")
def sum_turned(node: Node, ctx: PassContext) -> Outcome:
    """sum(x) → sum(reversed x), which is right but for rounding."""
    if node.rule is not None or node.operands[0].ndim != 1 or node.result.shape != ():
        return None
    return rewrite(sums_reordered, *node.operands)


@dataclass(frozen=True)
class Reorders(Pass):
    name: ClassVar[str] = "reorders"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        run_rules(graph, [sum_turned], ctx)


def doubled(x: Any, y: Any) -> Any:
    return jnp.dot(x, y) * 2


@node_rule("dot_general", must_pay=True)
def dot_to_more(node: Node, ctx: PassContext) -> Outcome:
    """x @ y → 2 (x @ y), which costs more"""
    return rewrite(doubled, *node.operands) if node.rule is None else None


@dataclass(frozen=True)
class NeverPays(Pass):
    name: ClassVar[str] = "never-pays"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        run_rules(graph, [dot_to_more], ctx)


WRONG: list[type[Pass]] = [
    NeverPays,
    Subtracts,
    ForgetsRules,
    ForgetsEffects,
    NeverDone,
    Raises,
    LeavesItBroken,
    Reorders,
]
