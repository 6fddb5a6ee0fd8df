"""Layers that run step by step, one layer after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.passes.loops._interchange.stack import Stack, candidates, stack_of
from lepton_jax.passes.loops._interchange.write import (
    Outer,
    exchanged,
    like_outer_operands,
    outer_operands,
    put_outside,
)
from lepton_jax.passes.loops._parts.credit import credited
from lepton_jax.passes.loops._parts.plan import EVERY, plan
from lepton_jax.passes.loops._parts.scan import Scan, plain_scans
from lepton_jax.passes.loops._parts.worth import DOTS, too_large, total_bytes
from lepton_jax.passes.loops._projection.accumulated import accumulated_product, why_not_after
from lepton_jax.passes.loops._projection.after import late_nodes
from lepton_jax.passes.loops._projection.before import free_nodes, why_not
from lepton_jax.passes.loops.recurrence import SHORTEST as SHORTEST_RECURRENCE
from lepton_jax.rewrite import Level, Pass, PassContext, profit
from lepton_jax.rewrite.replacement import Rewrite, traced

RULE: Final = "layer-by-layer"

_SHORTEST: Final = 4


@dataclass(frozen=True)
class Interchange(Pass):
    """Lets a loop over layers and the loop over time around it change places.

    Before:
        hs = scan(h, x_t) { y, h' = scan(x_t, (w_l, h_l)) { z = tanh(y @ w_l + h_l); z, z };  h', y }
    After:
        ys, h = scan(xs, (w_l, h_l)) { scan(h_l, y_t) { z = tanh(y_t @ w_l + h_l); z, z } }

    A layer needs its own state of the time before, and what the layer below has made at the same time. So
    it can do the whole sequence before the next layer begins. Its input projections are then one product,
    which `projection` takes out of the loop, and `recurrence` solves layers that are linear in their states.
    Gradients of such loops are such loops too, and the sums over time in them stay sums over time. What
    else the loop over time does stays in it.

    Fires where one of these passes then has something to do, and more than in the order that there is, and
    what is kept for all times is not too large. Level `reassociate`, as what layers read may be computed for
    all times at once.
    3.0× for four LSTM layers of 256, 7.9× with the gradient (`python benchmarks/rewrites.py --only loops`).
    """

    name: ClassVar[str] = "interchange"

    level: Level | None = None

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Inner loops first."""
        if not ctx.allows("reassociate", self.level):
            return
        for node in plain_scans(graph):
            if node.params["length"] < _SHORTEST or _was_exchanged(node):
                continue
            for layers in candidates(Scan(node)):
                _exchange(node, layers, ctx)


def _was_exchanged(node: Node) -> bool:
    """Whether this pass has made the loop; its layers are times for the loop in it, so it could go back."""
    chain = node.rule
    while chain is not None and chain.rule != RULE:
        chain = chain.before
    return chain is not None


def _exchange(node: Node, layers: Node, ctx: PassContext) -> None:
    stack = stack_of(Scan(node), layers)
    if stack is None:
        return
    if isinstance(stack, str):
        ctx.miss(RULE, layers, stack)
        return
    outer = like_outer_operands(stack)
    reason = _too_large(stack, outer, ctx)
    if reason is not None:
        ctx.miss(RULE, layers, reason)
        return
    reason = _not_worth(exchanged(stack, outer), stack, ctx)
    if reason is not None:
        ctx.miss(RULE, layers, reason)
    elif ctx.fire(RULE, layers):
        with credited(node, ctx):
            put_outside(stack, exchanged(stack, outer_operands(stack, RULE)), RULE)


def _too_large(stack: Stack, outer: Outer, ctx: PassContext) -> str | None:
    """Why the sequences between the layers, and those that are made for them, may not be kept."""
    time, layers = stack.time, stack.layers
    results = layers.node.results
    handed = total_bytes(results[: len(layers.carries)])
    kept = [results[place] for place in stack.wanted]
    stacked = {v for v in time.stacked}
    added = 2 * handed + total_bytes(v for v in kept if v not in stacked)
    has = total_bytes(dict.fromkeys([*time.scanned, *time.stacked]))
    made = total_bytes(value for v, (value, timed) in outer.items() if timed and v not in time.scanned)
    return too_large(time.length * added + made, time.length * has, ctx)


def _not_worth(made: Rewrite, stack: Stack, ctx: PassContext) -> str | None:
    """Why no other pass has more to do where each layer does all times."""
    if profit.is_disregarded():
        return None
    layers = _only_loop(from_jaxpr(traced(made, stack.time.node)))
    inner = None if layers is None else _only_loop(layers.regions[0])
    if inner is None:
        return "the loops are written out"
    present, other = stack.layers, Scan(inner)
    if _is_parallel(other, ctx):
        reason, is_as_good = None, _is_parallel(present, ctx)
    elif _is_parallel(present, ctx):
        return "the inner loop is parallel as it is"
    else:
        reason, is_as_good = _no_product(other, ctx), _no_product(present, ctx) is None
    if reason is None and is_as_good and present.length >= other.length:
        return "the inner loop has as much to do at once, and is the longer one"
    return reason


def _is_parallel(scan: Scan, ctx: PassContext) -> bool:
    """Whether `recurrence` solves a loop for all iterations at once."""
    long = ctx.rates.platform != "cpu" and scan.length >= SHORTEST_RECURRENCE
    return long and not isinstance(plan(scan, EVERY), str)


def _no_product(scan: Scan, ctx: PassContext) -> str | None:
    """Why no product of a loop pays for all iterations at once."""
    reasons = [*_products(scan, ctx), *_sums(scan, ctx)]
    if not reasons:
        return "a layer has no product besides those of its state"
    return None if None in reasons else reasons[0]


def _only_loop(graph: Graph) -> Node | None:
    loops = [node for node in graph if node.op == "scan"]
    return loops[0] if len(loops) == 1 else None


def _products(time: Scan, ctx: PassContext) -> list[str | None]:
    """Of each product that a layer may do for all times at once, why it does not pay."""
    depends = time.dependence()
    free = [n for n in free_nodes(time, depends) if depends[n.results[0]]]
    found = [n for n in (*free, *late_nodes(time, depends)) if n.op in DOTS]
    return [
        why_not(n, time, depends, ctx)
        if any(v.is_const or not depends[v] for v in n.operands)
        else "both factors change, so that many products stay many"
        for n in found
    ]


def _sums(time: Scan, ctx: PassContext) -> list[str | None]:
    """Of each sum of products over time, why one product does not pay."""
    found = [accumulated_product(time, i) for i in range(len(time.carries))]
    return [why_not_after(time, product, ctx) for product, _ in filter(None, found)]
