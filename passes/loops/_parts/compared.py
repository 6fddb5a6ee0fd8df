"""Where a step compares what it returns with what it is made of."""

from __future__ import annotations

from lepton_jax.ir.graph import Value
from lepton_jax.passes.loops._parts.scan import Scan

_COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "sign"})


def is_compared(scan: Scan, new: Value) -> bool:
    """Whether the body compares its next carry with another value of the same iteration.

    The gradient of a maximum asks which operand equals it, `eq(h + x, max(h + x, 0))`. A carry that is
    solved at once rounds otherwise than one more step does: next to it nothing would be equal, and the
    gradient zero.

    Args:
        new: what the body returns for a carry.
    """
    depends = scan.dependence()
    after, mixed = {new}, set[Value]()
    for node in scan.body:
        varying = [v for v in node.operands if not v.is_const and depends[v]]
        if after.isdisjoint(varying):
            continue
        beside = not after.issuperset(varying)
        if (beside or not mixed.isdisjoint(varying)) and (node.op in _COMPARISONS or node.regions):
            return True
        after.update(node.results)
        if beside or not mixed.isdisjoint(varying):
            mixed.update(node.results)
    return False
