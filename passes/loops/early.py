"""What depends on parameters alone, out of loops, branches and calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepton_jax.ir.binding import Sources, early_inputs, note_early
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import add_constant, editable, erase_dead_nodes, outer_of
from lepton_jax.ir.split import frontier
from lepton_jax.passes.loops._parts.piece import cut, makers, once
from lepton_jax.passes.loops._parts.scan import Scan, add_scanned, drop_unread, is_plain_scan, write_batched
from lepton_jax.passes.loops._parts.shards import before_shards
from lepton_jax.passes.loops._parts.worth import stuck
from lepton_jax.rewrite import Pass, PassContext, rewrite
from lepton_jax.rewrite.replacement import between, write_before

_RULE = "early-value"


@dataclass(frozen=True)
class Early(Pass):
    """Computes outside of loops, branches and calls what depends on parameters alone.

    Before:
        scan over stacked weights %ws { %q = round(%w / %s); %y = dot %x %q }
    After:
        %qs = round(%ws / %ss), for all layers at once;  scan over %qs { %y = dot %x %q }

    It gets a program ready for `prepare`, which takes what stands outside: slices of stacked parameters
    are parameters too. What is cheap and larger than what it is made of stays, as does what is
    computed from a value marked by `lepton_jax.ir.binding.store`. Nothing happens unless the parameters
    are known. Level `exact`.
    """

    name: ClassVar[str] = "early"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Outer regions know what is early first; code moves out of the inner ones first."""
        if ctx.params:
            _empty(graph, {graph.inputs[i]: frozenset((i,)) for i in ctx.params}, ctx)


def _empty(graph: Graph, known: Sources, ctx: PassContext) -> None:
    """Take what is early out of the regions of a graph's nodes.

    Args:
        known: what is early among its inputs; the values that it makes are added.
    """
    for node in list(graph):
        if note_early(node, known) or not node.regions or not _is_open(node):
            continue
        for index, region in enumerate(node.regions):
            inner = early_inputs(node, index, known, shards=True)
            if any(inner.values()):
                _empty(region, inner, ctx)
                for fresh in _take_out(node, index, inner, ctx):
                    note_early(fresh, known)


def _is_open(node: Node) -> bool:
    return (node.op == "shard_map" and node.own_regions()) or editable(node)


def _take_out(node: Node, index: int, inner: Sources, ctx: PassContext) -> list[Node]:
    """Compute in front of a node what one of its regions computes early; returns the new nodes."""
    region = node.regions[index]
    late = [each for each in region if not all(v in inner for v in each.results)]
    read = [v for each in (*late, region.ret) for v in each.operands if inner.get(v)]
    kept = frontier(region, read, lambda v: bool(inner.get(v)))
    varying = _varying(node)
    wanted = [v for v in kept if v.node is not None and (varying is not None or node.op != "scan")]
    wanted = [v for v in wanted if v.node is not None and _may_move(v) and ctx.fire(_RULE, v.node)]
    first = node.prev
    if node.op == "shard_map":
        if wanted:
            before_shards(node, wanted, _RULE)
        return between(first, node)
    if fixed := [v for v in wanted if v not in (varying or ())]:
        _before(node, index, fixed)
    if moving := [v for v in wanted if v in (varying or ())]:
        _for_all_iterations(node, moving)
    erase_dead_nodes(region)
    if node.op == "scan":
        drop_unread(node)
    return between(first, node)


def _may_move(value: Value) -> bool:
    """Whether all that a value is made of may run in front of the region."""
    return all(stuck(node, branches=True) is None for node in makers([value], lambda v: False))


def _varying(node: Node) -> set[Value] | None:
    """The values that differ from one iteration to the next; None for a loop that cannot be edited."""
    if not is_plain_scan(node):
        return None if node.op == "scan" else set()
    depends = Scan(node).dependence()
    return {v for v in depends if depends[v]}


def _before(node: Node, index: int, values: list[Value]) -> None:
    """Compute values of a region before the node."""
    region = node.regions[index]
    piece, leaves = cut(region, values)
    outer = outer_of(node, region)
    made = rewrite(once, *(v if v.is_const else outer[v] for v in leaves), piece=piece)
    for value, result in zip(values, write_before(made, node, _RULE), strict=True):
        value.replace_uses(add_constant(node, index, result))


def _for_all_iterations(node: Node, values: list[Value]) -> None:
    """Compute values of a scan's body for all iterations before it."""
    scan = Scan(node)
    piece, leaves = cut(scan.body, values)
    for value, result in zip(values, write_batched(scan, piece, leaves, _RULE), strict=True):
        value.replace_uses(add_scanned(node, result, value))
