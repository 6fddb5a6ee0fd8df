"""Which sums over the batch a loop carries."""

from __future__ import annotations

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.microbatches.flow import Flow
from lepton_jax.parallel.microbatches.states import LATE, Part, Sum


def accumulated(flow: Flow) -> list[Value]:
    """The sums that are read after the loop, as early in the program as they take no more memory."""
    outputs = set(flow.graph.outputs)
    waiting = [
        value
        for node in flow.graph
        for value in node.results
        if isinstance(flow.of(value), Sum)
        and (value in outputs or any(_is_after(flow, user) for user in value.users()))
    ]
    found: dict[Value, None] = {}
    while waiting:
        value = waiting.pop()
        before = _before(flow, value)
        if before is not None:
            waiting.append(before)
        else:
            found[value] = None
    order = {value: i for i, value in enumerate(v for node in flow.graph for v in node.results)}
    return sorted(found, key=order.__getitem__)


def _is_after(flow: Flow, user: Node) -> bool:
    """Whether a reader of a sum runs after the loop."""
    return user.graph is flow.graph and (not user.results or flow.of(user.results[0]) is LATE)


def _before(flow: Flow, value: Value) -> Value | None:
    """The only sum that a sum is computed of, where adding that up takes no more memory."""
    node = value.node
    if node is None or node.regions or len(node.results) != 1:
        return None
    if any(isinstance(flow.of(each), Part) for each in node.operands):
        return None
    sums = [each for each in dict.fromkeys(node.operands) if isinstance(flow.of(each), Sum)]
    if len(sums) != 1 or sums[0].aval.size > value.aval.size:
        return None
    return sums[0]
