"""What a change to a loop saves, for the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.graph import Node
from lepton_jax.rewrite import PassContext


@contextmanager
def credited(node: Node, ctx: PassContext) -> Iterator[None]:
    """Credit what happens to a loop inside of the `with` to the last rule that fires there.

    Only where somebody wants to know, as for all rules: pricing every loop takes time.
    """
    if not ctx.explain:
        yield
        return
    first, last, known = node.prev, node.next, len(ctx.applications)
    before = ctx.seconds(node_cost(node))
    yield
    if len(ctx.applications) == known:
        return
    after = 0.0
    current = None if first is None else first.next
    while current is not None and current is not last:
        after += ctx.seconds(node_cost(current))
        current = current.next
    ctx.applications[-1].saving = before - after
