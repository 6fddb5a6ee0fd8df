"""Loops whose iterations do not need one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.passes.loops._parallel.batch import run_at_once
from lepton_jax.passes.loops._parts.apply import rule_of, solve_carry
from lepton_jax.passes.loops._parts.credit import credited
from lepton_jax.passes.loops._parts.plan import SIMPLE, Step, plan
from lepton_jax.passes.loops._parts.scan import Scan, plain_scans
from lepton_jax.passes.loops._parts.worth import (
    CHUNK,
    DOTS,
    LARGEST,
    MOVEMENT,
    stuck,
    temporaries,
    total_bytes,
)
from lepton_jax.passes.simplify._demand.makers import ELEMENTWISE
from lepton_jax.rewrite import Level, Pass, PassContext, profit

RULE: Final = "loop-at-once"

_LARGE: Final = 4 << 20
"""An iteration that makes so many bytes keeps a CPU busy by itself."""

_BUSY: Final = 4e6
"""So does a product of so many operations: it takes some 50 µs, where starting an operation takes one."""

_TINY: Final = 4
"""Products along axes no longer than this are part of XLA's loops, and slow in batches."""

_NARROW: Final = 16
"""An inner loop over so few numbers, or fewer, spends its time on starting iterations."""

_NO_PRODUCT: Final = "there is no product in the loop, and XLA's loop is as fast on a CPU"


@dataclass(frozen=True)
class Parallel(Pass):
    """Runs the iterations of a loop at once where none needs what another has computed.

    Before:
        ys = scan(c, x_t) { c' = c + sum(x_t @ w); y_t = tanh(x_t @ w) }
    After:
        ys = tanh(xs @ w);  c = c + sum over t of sum(xs @ w)

    - nothing handed on (`scan`, `lax.map`, `fori_loop`): the body under `jax.vmap`;
    - a counter is an iota, what the iteration before has computed is the same array, shifted by one;
    - sums, products, maxima, minima and logical folds that nothing else reads are reductions.

    What the iterations make at once is bounded: beyond the bound they run in chunks. Level `reassociate`.
    Random generators other than threefry, effects, branches and while loops in the body are left alone.
    On a CPU the body must contain a product along more than 4 numbers: XLA's loops over elementwise work
    and tiny products are as fast as they get. Or it
    is itself a loop over a few numbers, such as a filter for each row: then both loops change places, and
    each iteration of the inner one works on all rows.
    """

    name: ClassVar[str] = "parallel"

    level: Level | None = None

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Inner loops first."""
        if not ctx.allows("reassociate", self.level):
            return
        for node in plain_scans(graph):
            if node.params["length"] > 1:
                _parallelise(node, ctx)


def _parallelise(node: Node, ctx: PassContext) -> None:
    scan = Scan(node)
    if _saves_cores(ctx) and not (any(map(_has_product, scan.body)) or has_narrow_loop(scan)):
        ctx.miss(RULE, node, _NO_PRODUCT)
        return
    steps = plan(scan, SIMPLE)
    if isinstance(steps, str):
        return
    reason = why_not(scan, steps, ctx)
    if reason is not None:
        ctx.miss(RULE, node, reason)
        return
    with credited(node, ctx):
        finish(node, SIMPLE, ctx)


def finish(node: Node, kinds: frozenset[str], ctx: PassContext) -> None:
    """Solve the carries one after the other, then run what is left of the loop at once."""
    while True:
        steps = plan(Scan(node), kinds)
        if isinstance(steps, str):
            return
        step = next((step for step in steps if step.kind != "reduction"), None)
        if step is None:
            break
        if not ctx.fire(rule_of(step), node):
            return
        solve_carry(node, step)
    if node.is_dead:
        return
    size = chunk_of(Scan(node), ctx)
    if size > 1 and ctx.fire(RULE, node):
        run_at_once(node, steps, size, RULE)


def chunk_of(scan: Scan, ctx: PassContext) -> int:
    """How many iterations may run at once."""
    each = max(temporaries(scan.body), 1.0)
    most = int(CHUNK.get(ctx.rates.platform, 64 << 20) // each)
    return min(most, scan.length)


def why_not(scan: Scan, steps: list[Step], ctx: PassContext) -> str | None:
    """Why the iterations of a loop may not or should not run at once."""
    for node in scan.body:
        reason = stuck(node)
        if reason is not None:
            return reason
    each = temporaries(scan.body)
    if _saves_cores(ctx):
        depends = scan.dependence()
        products = any(_has_product(n) and depends[n.results[0]] & 1 for n in scan.body if n.results)
        if not products and not has_narrow_loop(scan):
            return _NO_PRODUCT
        if each > _LARGE:
            return f"an iteration makes {each / 2**20:.0f} MiB, which keeps a CPU busy"
        if (flops := max(map(_product_flops, scan.body))) > _BUSY:
            return f"a product of {flops / 1e6:.0f} MFLOP keeps a CPU busy"
    if chunk_of(scan, ctx) < 2:
        return f"an iteration makes {each / 2**20:.0f} MiB, which is too much to run several"
    kept = scan.length * total_bytes(s.carry for s in steps if s.kind != "reduction")
    if kept > LARGEST.get(ctx.rates.platform, 64 << 20):
        return f"the carries of all iterations take {kept / 2**20:.0f} MiB"
    slices = total_bytes(scan.scanned)
    terms = total_bytes(s.term for s in steps if s.term is not None)
    if terms > max(4 * slices, 4096):
        return "what is summed is larger than what is read, so the loop saves memory"
    return None


def has_narrow_loop(scan: Scan) -> bool:
    """Whether what a loop's body has besides elementwise work are loops over a few numbers."""
    depends = scan.dependence()
    loops = [node for node in scan.body if node.op == "scan"]
    if not loops or any(node.regions and node.op != "scan" for node in scan.body):
        return False
    if not all(node.results and depends[node.results[0]] & 1 for node in loops):
        return False
    inner = [node for loop in loops for node in loop.regions[0].walk()]
    if not all(node.op in ELEMENTWISE or node.op in MOVEMENT or node.op == "scan" for node in inner):
        return False
    return all(value.is_static and value.aval.size <= _NARROW for node in inner for value in node.results)


def _saves_cores(ctx: PassContext) -> bool:
    """Whether work in parallel must pay on few cores."""
    return ctx.rates.platform == "cpu" and not profit.is_disregarded()


def _product_flops(node: Node) -> float:
    """Of the largest product of matrices in a node."""
    inner = (n for region in node.regions for n in region.walk())
    return max((node_cost(n).flops for n in (node, *inner) if n.op in DOTS), default=0.0)


def _has_product(node: Node) -> bool:
    """Whether there is a product in a node that is not tiny."""
    inner = (n for region in node.regions for n in region.walk())
    return any(
        n.op in DOTS and max(d for v in n.operands for d in (1, *v.shape)) > _TINY for n in (node, *inner)
    )
