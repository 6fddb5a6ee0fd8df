"""Which arrays of a call may be overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lepton_jax._options import Options
from lepton_jax._sharded.naming import Leaf
from lepton_jax._sharded.request import Spread
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.ir.regions import slots
from lepton_jax.parallel.roles import Roles

if TYPE_CHECKING:
    from lepton_jax._sharded.decision import Decision


def donated(
    decision: Decision, leaves: Sequence[Leaf], arguments: Sequence[str], options: Options, spread: Spread
) -> tuple[bool, ...]:
    """Of each input whether it is donated.

    What the user names is. With `donate="auto"`, what comes back as its next value is: an output of the same
    shape, dtype and layout that is made of the input element by element, or is the input with something
    written into it.

    Args:
        arguments: what the arguments given by position are called.
    """
    if spread.donate is None:
        names = set(options.donate_argnames)
        count = len(arguments)
        names |= {arguments[i] for i in options.donate_argnums if -count <= i < count}
        return tuple(leaf.argument in names for leaf in leaves)
    inputs, outputs = decision.inputs(), decision.outputs()
    coming = next_values(decision.graph, decision.roles)
    return tuple(i in coming and inputs[i] == outputs[coming[i]] for i in range(len(leaves)))


def next_values(graph: Graph, roles: Roles) -> dict[int, int]:
    """The positions of inputs that come back as their next values, with those of these outputs."""
    found = {}
    for i, o in roles.returned.items():
        before, after = graph.inputs[i], graph.outputs[o]
        alike = before.ndim > 0 and before.shape == after.shape and before.dtype == after.dtype
        if alike and _is_next(after, before):
            found[i] = o
    return found


def _is_next(value: Value, source: Value) -> bool:
    """Whether a value is `source` after some steps, each of which keeps its shape and dtype."""
    waiting, seen = [value], {value}
    while waiting:
        here = waiting.pop()
        if here is source:
            return True
        if here.node is None:
            continue
        operands = here.node.operands
        if here.node.regions:
            ways = [each.operand for each in slots(here.node) if each.result == here.index]
            operands = [operands[i] for i in ways if i is not None]
        fresh = [each for each in operands if each.shape == source.shape and each not in seen]
        seen.update(fresh)
        waiting += fresh
    return False
