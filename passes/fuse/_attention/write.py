"""Writing blocked attention, forward and backward, in place of the operations that were found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import MOVES, dot_numbers
from lepton_jax.passes.fuse._attention.blocked import attend
from lepton_jax.passes.fuse._attention.cutting import Cutting
from lepton_jax.passes.fuse._attention.known import known_everywhere, superfluous, without
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.fuse._attention.maxima import at_least_one, loosen, tracks
from lepton_jax.passes.fuse._attention.order import sort
from lepton_jax.passes.fuse._attention.plan import Plan, Tile
from lepton_jax.passes.fuse._attention.program import Builder, Program, batch_first
from lepton_jax.passes.fuse._attention.region import Region, Sink, stages, vanishes
from lepton_jax.passes.fuse._attention.rows import Thin, as_subtracted, finished, thin_of
from lepton_jax.passes.fuse._attention.rowsums import row_sums, write_row_sums
from lepton_jax.passes.fuse._attention.running import result_order
from lepton_jax.passes.fuse._attention.stage import Stage, Sum, summed
from lepton_jax.passes.fuse._attention.wide import wide, widened, widened_step
from lepton_jax.rewrite import erase_dead, rewrite
from lepton_jax.rewrite.replacement import write_before

RULE: Final = "attention"

Results = Sequence[Value]
"""The product of weights and values, the maxima of the scores, the sums of exponentials, and of others."""


def plan_of(found: Found, cutting: Cutting, tracked: bool) -> Plan:
    """What the blocked form has to know."""
    contract, batch = dot_numbers(found.dot)
    side = found.side
    blocks = cutting.blocks
    order = tuple(tuple(map(int, np.argsort(~line, kind="stable"))) for line in blocks.counts)
    shift: Any = "none" if found.shift is None else "row" if found.top is None else "top"
    precision = found.dot.params.get("precision")
    if side == 1 and isinstance(precision, tuple):
        precision = precision[::-1]
    weights = widened(found.weights) if cutting.widen else found.weights
    summed = widened(found.summed) if cutting.widen else found.summed
    places = {node: place for place, (node, _, _) in enumerate(found.late.steps)}
    plan = Plan(
        scores=cutting.scores,
        weights=weights,
        moves=tuple(weights.steps[places[node]] for node in found.moves if node.op in MOVES),
        summed=summed if found.masked else replace(summed, steps=()),
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
        tiles=_masked(cutting, found, weights, summed) if found.masked else cutting.tiles,
        order=order,
        counts=tuple(int(c) for c in blocks.counts.sum(1)),
        fill=blocks.fill,
        tracks=tracked,
    )
    return replace(plan, layout=_layout(found.dot, plan))


def _masked(cutting: Cutting, found: Found, weights: Program, summed: Program) -> tuple[Tile, ...]:
    """The kinds of blocks, with no masks after the exponential where they are known to mask nothing."""
    made = []
    for tile in cutting.tiles:
        where = np.zeros(cutting.blocks.counts.shape, bool)
        for line, columns in zip(where, tile.blocks, strict=True):
            line[list(columns)] = True
        own = []
        for program in (weights, summed):
            known = known_everywhere(program, found.late, cutting.grid, cutting.size, where)
            own.append(without(program, superfluous(program, found.late, known)))
        made.append(replace(tile, weights=own[0], summed=own[1]))
    return tuple(made)


def _layout(dot: Node, plan: Plan) -> tuple[int, ...]:
    """The order of the product's axes in which it is wanted: its only reader may transpose it."""
    order = result_order(plan, dot.result.ndim)
    users = dot.result.users()
    if len(users) != 1 or users[0].op != "transpose":
        return order
    return tuple(order[int(d)] for d in users[0].params["permutation"])


def blocked(
    values: Any, *arrays: Any, plan: Plan, thins: tuple[Thin, ...], dtypes: tuple[Any, ...], again: bool
) -> list[jax.Array]:
    """The product, the maxima, the sums and other sums, in the shapes and dtypes they had.

    Args:
        again: whether a backward half computes the exponentials again, of these maxima.
    """
    count = len(plan.scores.leaves) + len(plan.late.leaves)
    state = attend(plan, values, *arrays[:count])
    state = as_subtracted(plan, state, dtypes[0]) if again else state
    mixed, *rows = finished(plan, state, thins, arrays[count:])
    mixed = mixed.transpose(result_order(plan, mixed.ndim)).astype(plan.dtype)
    return [mixed, *(x.squeeze(plan.key).astype(dtype) for x, dtype in zip(rows, dtypes, strict=True))]


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
    reached = loosen(found) if region.sinks else ()
    rows = row_sums(found, region.sinks)
    again = bool(region.sinks) or keep is not None
    results = _forward(found, cutting, tracks(found, region), again) if given is None else given
    mixed, top, total, *others = results
    if keep is not None:
        for value in results:
            keep(value)
    dot.result.replace_uses(mixed)
    erase_dead(dot)
    _replace(found.sums, total)
    _replace(found.tops, top)
    for (node, _), value in zip(found.others, others, strict=False):
        _replace((node,), value)
    for node in found.ends:
        erase_dead(node)
    if region.sinks or any(value.uses for value in results[1:]):
        sort(graph)
    if rows is not None:
        write_row_sums(rows, mixed, total, RULE)
        sort(graph)
        done = {row.sink.node for row in rows.sums}
        region = Region(region.labels, tuple(s for s in region.sinks if s.node not in done))
    for sink in region.sinks:
        at_least_one(sink.node, reached)
    for sinks in stages(region):
        _write_stage(found, sinks, cutting, top)
        sort(graph)
    return results


def _forward(found: Found, cutting: Cutting, tracked: bool, again: bool) -> Results:
    """Write the forward half before the product."""
    dot = found.dot
    sums = found.sums[0].result.dtype if found.sums else found.scores.dtype
    dtypes = (found.scores.dtype, sums, *(node.result.dtype for node, _ in found.others))
    thins = thin_of(found)
    arrays = (
        dot.operands[1 - found.side],
        *found.builder.values,
        *found.late.values[1:],
        *(value for _, value in thins if value is not None),
    )
    made = rewrite(
        blocked,
        *arrays,
        plan=plan_of(found, cutting, tracked),
        thins=tuple(thin for thin, _ in thins),
        dtypes=dtypes,
        again=again,
    )
    return write_before(made, dot, RULE)


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
