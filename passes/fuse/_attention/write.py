"""Writing blocked attention, forward and backward, in place of the operations that were found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import dot_numbers
from lepton_jax.passes.fuse._attention.blocked import attention
from lepton_jax.passes.fuse._attention.cutting import Cutting
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.fuse._attention.order import sort
from lepton_jax.passes.fuse._attention.plan import Plan
from lepton_jax.passes.fuse._attention.program import Builder, batch_first
from lepton_jax.passes.fuse._attention.region import Region, Sink, stages, vanishes
from lepton_jax.passes.fuse._attention.rowsums import row_sums, write_row_sums
from lepton_jax.passes.fuse._attention.running import result_order
from lepton_jax.passes.fuse._attention.stage import Stage, Sum, summed
from lepton_jax.passes.fuse._attention.wide import wide, widened, widened_step
from lepton_jax.rewrite import erase_dead, rewrite
from lepton_jax.rewrite.replacement import write_before

RULE: Final = "attention"

Results = tuple[Value, Value, Value]
"""The product of weights and values, the maxima of the scores, the sums of the exponentials."""


def plan_of(found: Found, cutting: Cutting) -> Plan:
    """What the blocked form has to know."""
    contract, batch = dot_numbers(found.dot)
    side = found.side
    blocks = cutting.blocks
    order = tuple(tuple(map(int, np.argsort(~line, kind="stable"))) for line in blocks.counts)
    shift: Any = "any" if found.top is None else "top"
    if found.exp.operands[0] is found.scores:
        shift = "none"
    precision = found.dot.params.get("precision")
    if side == 1 and isinstance(precision, tuple):
        precision = precision[::-1]
    plan = Plan(
        scores=cutting.scores,
        weights=widened(found.weights) if cutting.widen else found.weights,
        labels=found.labels,
        shape=found.scores.shape,
        exp_dtype=wide(found.exp.result.dtype) if cutting.widen else found.exp.result.dtype,
        contract=(contract[side][0], contract[1 - side][0]),
        batch=(batch[side], batch[1 - side]),
        side=side,
        precision=precision,
        dtype=found.dot.result.dtype,
        wide=jnp.promote_types(found.scores.dtype, jnp.float32),
        divided=found.divided,
        shift=shift,
        block=cutting.size,
        tiles=cutting.tiles,
        order=order,
        counts=tuple(int(c) for c in blocks.counts.sum(1)),
        fill=blocks.fill,
    )
    return replace(plan, layout=_layout(found.dot, plan))


def _layout(dot: Node, plan: Plan) -> tuple[int, ...]:
    """The order of the product's axes in which it is wanted: its only reader may transpose it."""
    order = result_order(plan, dot.result.ndim)
    users = dot.result.users()
    if len(users) != 1 or users[0].op != "transpose":
        return order
    return tuple(order[int(d)] for d in users[0].params["permutation"])


def blocked(values: Any, *leaves: Any, plan: Plan, dtypes: tuple[Any, Any]) -> list[jax.Array]:
    """The product, the maxima and the sums, in the dtypes they had."""
    mixed, top, total = attention(values, *leaves, plan=plan)
    return [mixed, top.astype(dtypes[0]), total.astype(dtypes[1])]


def write(
    found: Found,
    region: Region,
    cutting: Cutting,
    given: Results | None = None,
    keep: Callable[[Value], object] | None = None,
) -> Results:
    """Put loops over blocks in place of attention and of what else reads its weights.

    Args:
        found: the attention.
        region: what else reads its weights, and is summed.
        cutting: how it is cut.
        given: the forward half's results, where the program has them already.
        keep: sees to it that a result is read, before what nobody reads is erased.

    Returns:
        The product, the maxima and the sums, in the shapes and dtypes they had.
    """
    dot = found.dot
    graph = dot.graph
    assert graph is not None
    rows = row_sums(found, region.sinks)
    mixed, top, total = results = _forward(found, cutting) if given is None else given
    if keep is not None:
        for value in results:
            keep(value)
    old = [dot, *found.sums, *([] if found.top is None else [found.top])]
    dot.result.replace_uses(mixed)
    erase_dead(dot)
    _replace(found.sums, total)
    if found.top is not None:
        _replace((found.top,), top)
    for node in old:
        erase_dead(node)
    if region.sinks or any(value.uses for value in (top, total)):
        sort(graph)
    if rows is not None:
        write_row_sums(rows, mixed, total, RULE)
        sort(graph)
        done = {row.sink.node for row in rows.sums}
        region = Region(region.labels, tuple(s for s in region.sinks if s.node not in done))
    for sink in region.sinks:
        _at_least_one(sink.node)
    for sinks in stages(region):
        _write_stage(found, sinks, cutting, top)
        sort(graph)
    return results


def _forward(found: Found, cutting: Cutting) -> Results:
    """Write the forward half before the product."""
    dot = found.dot
    dtypes = (found.scores.dtype, found.sums[0].result.dtype)
    values = dot.operands[1 - found.side]
    plan = plan_of(found, cutting)
    made = rewrite(blocked, values, *found.builder.values, plan=plan, dtypes=dtypes)
    mixed, top, total = write_before(made, dot, RULE)
    return mixed, top, total


def _at_least_one(node: Node) -> None:
    """Where a maximum is differentiated, let the keys that reach it be at least one.

    Scores that are computed again may differ from their maximum by rounding, so that none reaches it.
    """
    operand = node.operands[0]
    while operand.node is not None and operand.op == "convert_element_type":
        operand = operand.node.operands[0]
    if node.op != "reduce_sum" or operand.op != "eq" or node.graph is None:
        return
    uses = list(node.result.uses)
    (safe,) = write_before(rewrite(_one_or_more, node.result), node.graph.ret, RULE)
    for user, position in uses:
        user.set_operand(position, safe)
    sort(node.graph)


def _one_or_more(count: Any) -> Any:
    return jnp.maximum(count, jnp.ones_like(count))


def _write_stage(found: Found, sinks: list[Sink], cutting: Cutting, top: Value) -> None:
    """Sum in one loop over blocks what one stage of the backward half sums."""
    builder, blocks = Builder(), cutting.blocks
    known: dict[Value, bool] = {}
    places = []
    for sink in sinks:
        mine = [builder.add(sink.node.operands[sink.position], sink.marks)]
        if len(sink.node.operands) > 1:
            mine.append(builder.add(sink.node.operands[1 - sink.position], sink.others))
        places.append(mine if sink.position == 0 else mine[::-1])
    ends = [builder.finished(s.node, s.labels, place) for s, place in zip(sinks, places, strict=True)]
    program, ends = batch_first(builder.program(places[0][0]), ends)
    dtypes = [end.dtype for end in ends]
    if cutting.widen:
        program, ends = widened(program), [widened_step(end) for end in ends]
    sums = tuple(Sum(e, s.position, s.marks, d) for s, e, d in zip(sinks, ends, dtypes, strict=True))
    may_skip = all(vanishes(s.node.operands[s.position], found.exp.result, known) for s in sinks)
    every = [(i, j) for i in range(blocks.counts.shape[0]) for j in range(blocks.counts.shape[1])]
    counted = [pair for pair in every if blocks.counts[pair] or not may_skip]
    stage = Stage(
        program=program,
        sums=sums,
        size=found.size,
        block=cutting.size,
        pairs=tuple(counted),
        rest=tuple(pair for pair in every if pair not in set(counted)),
        fill=blocks.fill,
    )
    last = sinks[-1].node
    results = write_before(rewrite(summed, top, *builder.values, stage=stage), last, RULE)
    for sink, value in zip(sinks, results, strict=True):
        sink.node.result.replace_uses(value)
    for sink in sinks:
        erase_dead(sink.node)


def _replace(nodes: tuple[Node, ...], value: Value) -> None:
    for node in nodes:
        if node.alive and node.result.uses and node.result.dtype == value.dtype:
            node.result.replace_uses(value)
