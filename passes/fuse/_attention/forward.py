"""Deciding where attention is computed in blocks, or by a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from lepton_jax.ir.graph import Node, RuleChain, Value
from lepton_jax.passes.fuse._attention.across import Crossing, crossing_of, handed
from lepton_jax.passes.fuse._attention.axes import dot_numbers
from lepton_jax.passes.fuse._attention.cutting import Limits, cutting_of
from lepton_jax.passes.fuse._attention.inward import bring_in
from lepton_jax.passes.fuse._attention.lowered import lower
from lepton_jax.passes.fuse._attention.match import Found, find
from lepton_jax.passes.fuse._attention.maxima import ties_count
from lepton_jax.passes.fuse._attention.missing import is_random, missing_product, withdraw
from lepton_jax.passes.fuse._attention.region import Region, region_of
from lepton_jax.passes.fuse._attention.shardings import is_sharded
from lepton_jax.passes.fuse._attention.write import RULE, Results, write
from lepton_jax.passes.loops._parts.scan import drop_unread
from lepton_jax.rewrite import PassContext


def fuse(dot: Node, ctx: PassContext, limits: Limits) -> None:
    """Rewrite the attention that ends in a product, if it does and if that pays."""
    if not _may_pay(dot, limits) or _is_written(dot):
        return
    found = find(dot)
    if found is None:
        return
    if isinstance(found, Found) and _lowered(found, ctx, limits):
        return
    crossing = None if isinstance(found, str) else crossing_of(found)
    if isinstance(found, str) or isinstance(crossing, str):
        ctx.miss(RULE, dot, str(found if isinstance(found, str) else crossing))
        return
    region = region_of(found, frozenset() if crossing is None else crossing.large)
    reason = region if isinstance(region, str) else _why_not(found, region, limits)
    if reason is None and crossing is not None:
        reason = _why_not_across(crossing, limits)
    if reason is not None:
        ctx.miss(RULE, dot, reason)
    elif not ctx.fire(RULE, dot):
        return
    elif crossing is None:
        _write(dot, limits)
    else:
        _write_across(crossing, limits)


def fuse_gradient(exp: Node, ctx: PassContext, limits: Limits) -> None:
    """Rewrite the backward half of attention where the program has no use for the forward one's result."""
    shape = exp.result.shape
    if not exp.result.is_static or max(shape, default=0) < min(limits.masked, limits.open):
        return
    if _is_written(exp):
        return
    dot = missing_product(exp)
    graph = exp.graph
    if dot is None or graph is None:
        return
    found = find(dot)
    region = found if found is None or isinstance(found, str) else region_of(found)
    if isinstance(found, Found) and isinstance(region, Region):
        reason = _why_not(found, region, limits)
        if reason is None and region.sinks and not is_random(region) and ctx.fire(RULE, exp):
            exp.rule = RuleChain(RULE, exp.rule)  # not again, if something else still reads it
            graph.append(dot)
            _write(dot, limits)
            return
        region = reason
    withdraw(dot)
    if isinstance(region, str):
        ctx.miss(RULE, exp, region)


def _is_written(node: Node) -> bool:
    """Whether this rule has seen to a node, or to one in whose region it stands."""
    holder: Node | None = node
    while holder is not None:
        if holder.rule is not None and holder.rule.rule == RULE:
            return True
        graph = holder.graph
        holder = graph.parents[0] if graph is not None and graph.parents else None
    return False


def _why_not_across(crossing: Crossing, limits: Limits) -> str | None:
    """Why the loops that read what a loop kept of attention cannot compute it in blocks."""
    for reader in crossing.readers:
        found = find(crossing.trial(reader))
        region = found if found is None or isinstance(found, str) else region_of(found)
        if isinstance(found, Found) and isinstance(region, Region):
            region = _why_not(found, region, replace(limits, open=0))  # as long as the forward half is
            if region is None and len(found.others) not in (0, len(crossing.found.others)):
                region = "other sums are made"
        elif region is None:
            region = "there is none"
        if region is not None:
            return f"in another loop, {region}"
    return None


def _prepared(dot: Node) -> tuple[Found, Region]:
    """Attention that is about to be written, with masks from outside its loop computed in it."""
    while True:
        found = find(dot)
        assert isinstance(found, Found)
        region = region_of(found)
        assert isinstance(region, Region)
        if not bring_in(found, region):
            return found, region


def _write(
    dot: Node,
    limits: Limits,
    given: Results | None = None,
    keep: Callable[[Value], object] | None = None,
) -> Results:
    found, region = _prepared(dot)
    return write(found, region, cutting_of(found, limits), given, keep)


def _write_across(crossing: Crossing, limits: Limits) -> None:
    """The forward half in its loop, and the backward half in others, from what the forward one keeps."""
    dots = [(reader, crossing.move(reader)) for reader in crossing.readers]
    for reader, _ in dots:
        drop_unread(reader)
    crossing.release()
    results = _write(crossing.found.dot, limits, keep=crossing.keep)
    drop_unread(crossing.loop)
    for reader, dot in dots:
        _write(dot, limits, [handed(crossing.loop, value, reader) for value in results])
        drop_unread(reader)


def _lowered(found: Found, ctx: PassContext, limits: Limits) -> bool:
    """Whether a library kernel was put in."""
    if not limits.target or _has_sharding(found):
        return False
    return lower(found, ctx, limits.target, limits.kernel)


def _may_pay(dot: Node, limits: Limits) -> bool:
    """A first look, for every product in the program."""
    contract, _ = dot_numbers(dot)
    if len(contract[0]) != 1 or not all(v.is_static and 0 not in v.shape for v in dot.operands):
        return False
    fewest = min(limits.masked, limits.open, limits.kernel if limits.target else limits.open)
    return bool(dot.operands[0].shape[contract[0][0]] >= fewest)


def _why_not(found: Found, region: Region, limits: Limits) -> str | None:
    queries, keys = found.size
    if keys < limits.open:
        fewest = limits.masked if cutting_of(found, limits).share <= 0.75 else limits.open
        if keys < fewest:
            return f"there are {keys} keys; blocks pay from {fewest}"
    if queries < 2 or math.prod(found.scores.shape) < limits.scores:
        return f"there are only {math.prod(found.scores.shape)} scores"
    if _has_sharding(found):
        return "an array in it carries a sharding"
    if _has_late_values(found):
        return "the values, or a mask of the weights, are made of the weights"
    if region.sinks and ties_count(found):
        return f"its gradient depends on which scores of {found.scores.dtype} are the maximum of their row"
    return None


def _has_late_values(found: Found) -> bool:
    """Whether the values depend on the scores, as where they are divided by sums over the queries."""
    graph = found.exp.graph
    assert graph is not None
    made = {value.node for value in found.builder.dependent()} | {found.exp}
    late = (found.dot.operands[1 - found.side], *found.late.values[1:])
    left, needed = set(made), {value.node for value in late}
    node = graph.ret.prev if found.dot.graph is None else found.dot.prev
    while node is not None and left:
        left.discard(node)
        if node in needed:
            if node in made:
                return True
            needed |= {value.node for value in node.operands}
        node = node.prev
    return False


def _has_sharding(found: Found) -> bool:
    return any(is_sharded(value) for value in (*found.builder.values, found.dot.result))
