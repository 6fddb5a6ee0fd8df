"""Work that only outputs need: done for all iterations after the loop."""

from __future__ import annotations

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._parts.piece import cut
from lepton_jax.passes.loops._parts.scan import Scan, add_stacked, drop_unread, replace_stacked, write_batched
from lepton_jax.passes.loops._parts.worth import DOTS, MOVEMENT, stuck, too_large, total_bytes
from lepton_jax.passes.loops._projection.before import why_not
from lepton_jax.rewrite import PassContext

RULE = "project-outputs"


def project_outputs(node: Node, ctx: PassContext) -> None:
    """Products that only stacked outputs need are one product after the loop.

    scan(h, x_t: (h', h' @ V)) → (hs = scan(h, x_t: (h', h'))) @ V

    Holds for what no carry depends on and what has no effects. What it reads is stacked instead, which must
    not be much larger than the outputs were. On a CPU under the conditions of `project-inputs`.
    """
    scan = Scan(node)
    depends = scan.dependence()
    late = late_nodes(scan, depends)
    roots = [n for n in late if n.op in DOTS and why_not(n, scan, depends, ctx) is None]
    if not roots:
        return
    moved = _with_sources(scan, late, roots)
    taken = {v: None for n in moved for v in n.operands if not v.is_const and v.node not in moved}
    fresh = [v for v in taken if v not in scan.outer and scan.result_of(v) is None]
    outputs = [v for v in dict.fromkeys(scan.stacked) if v.node in moved]
    products = [v for root in roots for v in root.results if v not in outputs]
    added = scan.length * max(total_bytes(fresh), total_bytes(products))
    reason = too_large(added, scan.length * total_bytes(outputs), ctx)
    if reason is not None:
        ctx.miss(RULE, roots[0], reason)
        return
    if not ctx.fire(RULE, roots[0]):
        return
    known = {v: _stacked(node, v) for v in taken if v not in scan.outer}
    piece, leaves = cut(scan.body, outputs, lambda value: value in known)
    for value, outer in zip(outputs, write_batched(scan, piece, leaves, RULE, known), strict=True):
        replace_stacked(node, value, outer)
    drop_unread(node)


def _stacked(node: Node, value: Value) -> Value:
    return Scan(node).result_of(value) or add_stacked(node, value)


def late_nodes(scan: Scan, depends: dict[Value, int]) -> dict[Node, None]:
    """The nodes that depend on a carry and that only stacked outputs need, in order."""
    found: set[Node] = set()
    carry = len(scan.carries)
    ret = scan.body.ret
    for node in reversed(scan.body):
        if not any(depends[v] >> 1 for v in node.results) or stuck(node) is not None:
            continue
        uses = [use for v in node.results for use in v.uses]
        if uses and all(user in found or (user is ret and place >= carry) for user, place in uses):
            found.add(node)
    return {n: None for n in scan.body if n in found}


def _with_sources(scan: Scan, late: dict[Node, None], roots: list[Node]) -> dict[Node, None]:
    """The products, all that is computed from them, and moves of data that feed only these."""
    moved = set(roots)
    for node in late:
        if any(v.node in moved for v in node.operands):
            moved.add(node)
    for node in reversed(list(late)):
        if node.op in MOVEMENT and all(user in moved for v in node.results for user, _ in v.uses):
            moved.add(node)
    return {n: None for n in scan.body if n in moved}
