"""Passes that are nothing but rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite.base import Pass
from lepton_jax.rewrite.context import Level, PassContext
from lepton_jax.rewrite.driver import run_rules
from lepton_jax.rewrite.rule import Rule


@dataclass(frozen=True)
class RulePass(Pass):
    """Applies rules to a graph and its regions until none fires. A subclass names the rules.

    Attributes:
        level: a tighter limit than the run's on the rules' semantics level.

    Example:
        >>> from lepton_jax.rewrite import node_rule
        >>> @node_rule("neg")
        ... def neg_of_neg(node, ctx):
        ...     '''-(-x) → x'''
        ...     inner = node.operands[0].node
        ...     return inner.operands[0] if inner is not None and inner.op == "neg" else None
        >>> @dataclass(frozen=True)
        ... class Negations(RulePass):
        ...     name = "negations"
        ...     rules = (neg_of_neg,)
        >>> str(Negations(level="exact"))
        'negations{level=exact}'
    """

    rules: ClassVar[Sequence[Rule]] = ()
    """Tried on a node in this order."""

    level: Level | None = None

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Apply the rules; where they ran before, to what has changed since."""
        run_rules(graph, self.rules, ctx, level=self.level, since=ctx.settled.get(self, 0))
