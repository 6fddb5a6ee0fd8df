"""Loops whose steps compose: recurrences that are linear, bounded, or sums over paths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.ir.graph import Graph, Node
from lepton_jax.passes.loops._parts.credit import credited
from lepton_jax.passes.loops._parts.plan import EVERY, Step, plan
from lepton_jax.passes.loops._parts.scan import Scan, is_plain_scan, plain_scans
from lepton_jax.passes.loops._parts.worth import LARGEST, stuck, total_bytes
from lepton_jax.passes.loops._recurrence.opened import is_checkpointed, on_its_own, opened
from lepton_jax.passes.loops._recurrence.short import write_out
from lepton_jax.passes.loops._recurrence.solve import STEPWISE
from lepton_jax.passes.loops._recurrence.unroll import unroll
from lepton_jax.passes.loops.parallel import finish
from lepton_jax.rewrite import Level, Pass, PassContext, profit

RULE: Final = "linear-recurrence"
OPENED: Final = "checkpointed-step"

SHORTEST: Final = 32

_MOST_SUMS: Final = {"max": 1 << 19, "min": 1 << 19, "log": 1 << 17}
"""As many as a GPU computes in the time of some ten microseconds that an iteration of the loop takes."""


@dataclass(frozen=True)
class Recurrence(Pass):
    """Solves recurrences by a parallel scan over compositions of their steps, in log2(length) rounds.

    Before:
        hs = scan(h, (a_t, b_t)) { h' = a_t * h + b_t; y_t = h' }
    After:
        hs = associative_scan((a1, b1), (a2, b2) → (a1 * a2, a2 * b1 + b2))

    - `linear-recurrence`: the next carry is affine in the carry, element by element, however it is
      written; running sums are cumulative sums;
    - `clamped-recurrence`: sums, maxima and minima, as in min(max(a_t * h + b_t, low_t), high_t);
    - `held-carry`: where(p_t, b_t, h), the last value that was taken;
    - `best-so-far`: where(x_t > h, x_t, h), and whatever goes with it;
    - `bit-recurrence`: any function of single bits;
    - `log-sum-recurrence`: logaddexp(h + a_t, b_t), and logsumexp over up to 32 states;
    - `best-path-recurrence`: the same with maxima or minima;
    - `matrix-recurrence`: h @ A_t + b_t, and whatever else is linear in up to 128 numbers of a carry;
    - `coupled-recurrence`: several carries that are linear in one another: filters, oscillators, rotations;
    - `checkpointed-step`: all that under `jax.checkpoint`, which saves nothing where all steps are kept;
    - `loop-at-once`: what else the loop computes, for all iterations at once;
    - `unrolled-loop`: small loops that stay do eight iterations in one, on a GPU (exact);
    - `short-loop`: up to eight iterations of elementwise work on large arrays are written out (exact).

    All carries must be of these kinds, or of those that the pass `parallel` knows, and each may depend on
    those before. Where products of factors might overflow although the loop does not, the result is
    checked on the device, and the loop runs step by step if it is not finite. Level `reassociate`, on GPUs
    and TPUs: on a CPU with few cores the loop itself is faster, and it stays.
    """

    name: ClassVar[str] = "recurrence"

    level: Level | None = None

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Inner loops first."""
        solving = ctx.allows("reassociate", self.level)
        for node in plain_scans(graph):
            if not node.params["num_carry"] or _is_fallback(node):
                continue
            if solving:
                _solve(node, ctx)
            if is_plain_scan(node):
                unroll(node, ctx)
                write_out(node, ctx)


def _solve(node: Node, ctx: PassContext) -> None:
    scan = Scan(node)
    if scan.length < SHORTEST and not profit.is_disregarded():
        return
    if _prefers_loops(ctx) and not ctx.explain:
        return
    checkpointed = is_checkpointed(node)
    reason = _unsolved(Scan(on_its_own(node) if checkpointed else node), ctx)
    if reason:
        ctx.miss(RULE, node, reason)
    if reason is not None or (checkpointed and not ctx.fire(OPENED, node)):
        return
    loop = _replaced(node) if checkpointed else node
    with credited(loop, ctx):
        finish(loop, EVERY, ctx)


def _replaced(node: Node) -> Node:
    """The loop without checkpoints that has taken a loop's place."""
    assert node.graph is not None
    loop = opened(node, node.operands)
    node.graph.insert(loop, node)
    for old, new in zip(node.results, loop.results, strict=True):
        old.replace_uses(new)
    node.graph.erase(node)
    return loop


def _unsolved(scan: Scan, ctx: PassContext) -> str | None:
    """Why a loop is not solved at once; empty where there is nothing to solve."""
    steps = plan(scan, EVERY)
    if isinstance(steps, str):
        return steps
    if all(step.kind in ("counter", "shift") for step in steps):
        return ""
    return _why_not(scan, steps, ctx)


def _why_not(scan: Scan, steps: list[Step], ctx: PassContext) -> str | None:
    if _prefers_loops(ctx):
        return "a parallel scan does more work, and loses on the few cores of a CPU"
    for node in scan.body:
        reason = stuck(node)
        if reason is not None:
            return reason
    for step in steps:
        reason = _many_paths(step, ctx) if step.kind == "paths" else None
        if reason is not None:
            return reason
    kept = scan.length * sum(map(_bytes_of, steps))
    if kept > LARGEST.get(ctx.rates.platform, 64 << 20):
        return f"the steps of all iterations take {kept / 2**20:.0f} MiB"
    return None


def _many_paths(step: Step, ctx: PassContext) -> str | None:
    """Why matrices of scores should not be composed: no unit for products of matrices does it."""
    assert step.layout is not None
    states, most = step.layout.states, _MOST_SUMS[step.op]
    if states == 1 or profit.is_disregarded():
        return None
    if ctx.rates.platform != "gpu":
        return "matrices of scores are composed on GPUs alone"
    sums = states**3 * math.prod(step.carry.shape[axis] for axis in step.layout.lanes[0])
    return f"composing two steps takes {sums:.0e} sums" if sums > most else None


def _prefers_loops(ctx: PassContext) -> bool:
    return ctx.rates.platform == "cpu" and not profit.is_disregarded()


def _bytes_of(step: Step) -> float:
    """Bytes that the steps of one iteration take."""
    vectors = 3 * total_bytes(carry for carry, _ in step.pairs)
    if step.layout is None:
        return vectors
    sizes = [step.carry.shape[axis] for axis in step.layout.lanes[0]]
    varying = [n for n, same in zip(sizes, step.layout.uniform, strict=True) if not same]
    matrix = step.layout.states**2 * math.prod(varying) * max(step.carry.dtype.itemsize, 4)
    return float(vectors + 2 * matrix)


def _is_fallback(node: Node) -> bool:
    """Whether a loop is what runs where the parallel form is not finite."""
    return STEPWISE in node.scope
