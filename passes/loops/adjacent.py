"""Neighbouring loops of one length, in one loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.passes.loops._adjacent.merge import merge
from lepton_jax.passes.loops._adjacent.pair import Pair, pair_of
from lepton_jax.passes.loops._parts.credit import credited
from lepton_jax.passes.loops._parts.scan import Scan, is_plain_scan
from lepton_jax.passes.loops._parts.worth import DOTS, temporaries, total_bytes
from lepton_jax.rewrite import Pass, PassContext, profit

RULE: Final = "adjacent-loops"

_SHORTEST: Final = 4
_MOST_NODES: Final = 64
_MOST_BYTES: Final = 256 << 10
_LEAST_SAVING: Final = 0.05
_NEIGHBOURS: Final = 3


@dataclass(frozen=True)
class Adjacent(Pass):
    """Does the iterations of two loops side by side.

    Before:
        hs = scan(h, x_t) { h' = sin(h) + x_t; h' };  ys = scan(c, z_t over 2 * hs) { c' = max(c, z_t); c' }
    After:
        ys = scan((h, c), x_t) { h' = sin(h) + x_t; c' = max(c, 2 * h'); c' }

    Two scans of the same length and direction become one where neither needs what the other has in the
    end. The second may scan over what the first stacks, also after elementwise operations. What the first
    stacks for the second alone is not kept in memory. Exact. On a CPU only loops over elementwise work:
    beside a product, starting an iteration costs nothing.
    """

    name: ClassVar[str] = "adjacent"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Inner loops first, and of each graph the first loops first."""
        for inner in reversed(graph.graphs()):
            loops = [node for node in inner if is_plain_scan(node)]
            while len(loops) > 1:
                first = loops.pop(0)
                for second in loops[:_NEIGHBOURS]:
                    merged = _merged(first, second, ctx)
                    if merged is not None:
                        loops[loops.index(second)] = merged
                        break


def _merged(first: Node, second: Node, ctx: PassContext) -> Node | None:
    """The loop that two loops have become, if they have."""
    if not _alike(first, second):
        return None
    pair = pair_of(first, second)
    if pair is None:
        return None
    reason = _why_not(pair, ctx)
    if reason is not None:
        ctx.miss(RULE, second, reason)
        return None
    if not ctx.fire(RULE, second):
        return None
    with credited(second, ctx):
        return merge(pair, RULE)


def _alike(first: Node, second: Node) -> bool:
    """Whether two loops go round in the same way."""
    own = {"num_consts", "num_carry"}
    return first.context == second.context and all(
        first.params.get(key) == second.params.get(key) for key in {*first.params, *second.params} - own
    )


def _why_not(pair: Pair, ctx: PassContext) -> str | None:
    """Why doing two loops at once does not pay."""
    if profit.is_disregarded():
        return None
    first, second = Scan(pair.first), Scan(pair.second)
    if first.length < _SHORTEST:
        return "the loops are short"
    nodes = [*first.body, *second.body]
    if len(nodes) > _MOST_NODES:
        return "the loops are long to compile together"
    if ctx.rates.platform == "cpu" and any(node.regions or node.op in DOTS for node in nodes):
        return "beside a product, an iteration costs nothing on a CPU"
    kept = total_bytes(pair.results)
    if not kept and temporaries(first.body) + temporaries(second.body) > _MOST_BYTES:
        return "what an iteration computes takes longer than its start"
    saved = first.length * ctx.rates.seconds_per_iteration + 2 * kept / ctx.rates.bytes_per_second
    if saved < _LEAST_SAVING * sum(ctx.seconds(node_cost(node)) for node in (pair.first, pair.second)):
        return "what an iteration computes takes longer than its start"
    return None
