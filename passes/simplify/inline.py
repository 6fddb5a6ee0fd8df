"""Inlining of calls."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.inline import inline_call, is_plain_call
from lepton_jax.rewrite import Pass, PassContext


@dataclass(frozen=True)
class Inline(Pass):
    """Writes called functions into their callers, where the rest of the passes can see them.

    Before:
        %1 = jit[name='_where'] %p %x %y { ... select_n ... }
    After:
        %1 = select_n %p %y %x

    Inside `custom_jvp` and `custom_vjp` functions nothing is inlined: it would only make JAX
    build them anew.

    A function with one caller is always inlined, one with several while it is small: XLA
    lowers a shared function once, so large ones stay shared. Calls with shardings,
    donation or compiler options stay. Exact. It saves tracing and lowering time, not
    run time, and opens the way for other passes.

    Attributes:
        limit: functions of at most so many equations are inlined at every call.
        growth: the most equations that inlining may add to the program in all.
    """

    name: ClassVar[str] = "inline"
    limit: int = 30
    growth: int = 100_000

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Inline inner calls first, so that each function is as small as it gets."""
        left = self.growth
        for inner in reversed(graph.graphs(enter=_worth_entering)):
            for node in list(inner):
                if not is_plain_call(node):
                    continue
                added = self._added(node)
                if added > min(left, self.limit) or not ctx.fire("inline-call", node):
                    continue
                left -= added
                inline_call(node)

    def _added(self, node: Node) -> int:
        """How many equations the program gains, up to just above the limit; none if this is the only call."""
        (region,) = node.regions
        return sum(1 for _ in islice(region, self.limit + 1)) if len(region.parents) > 1 else 0


def _worth_entering(node: Node) -> bool:
    return not node.op.startswith("custom_")
