"""A pass from outside: operations that undo themselves, `-(-x)` and `~~x`, are dropped in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepton_jax.ir import Graph
from lepton_jax.rewrite import Pass, PassContext

INVOLUTIONS = ("neg", "not")


@dataclass(frozen=True)
class Involutions(Pass):
    """Drops pairs of equal operations that undo each other.

    Attributes:
        most: the most pairs that one run drops.
    """

    name: ClassVar[str] = "involutions"
    most: int = 1000

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Let whatever reads the second operation of a pair read the first one's operand."""
        dropped = 0
        for node in graph.walk():
            if node.op not in INVOLUTIONS or dropped == self.most:
                continue
            inner = node.operands[0].node
            if inner is None or inner.op != node.op or not ctx.fire(f"{node.op}-twice", node):
                continue
            node.result.replace_uses(inner.operands[0])
            dropped += 1
