"""How often the regions of an operation run, where only the numbers decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value

UNKNOWN_ROUNDS: Final = 10.0
"""A while loop goes round so often if nothing is known of it: Newton's method, a line search."""

_MOST_ROUNDS: Final = 4096
_FURTHEST: Final = 16


def rounds_of(node: Node) -> float:
    """How often a while loop is expected to go round.

    One that counts up to a number goes round as often as the mean of the least and the most that this can
    be: of the blocks that a causal mask leaves, a row has half on average.
    """
    test = node.regions[0].outputs[0].node
    if test is None or test.op not in ("lt", "le", "gt", "ge", "ne"):
        return UNKNOWN_ROUNDS
    counter, bound = test.operands if test.op not in ("gt", "ge") else reversed(test.operands)
    first, last = _at_start(node, counter), _at_start(node, bound)
    if first is None or last is None or not np.issubdtype(first.dtype, np.integer):
        return UNKNOWN_ROUNDS
    low = max(int(facts_of(last).least) - int(facts_of(first).most), 0)
    high = max(int(facts_of(last).most) - int(facts_of(first).least), 0)
    return UNKNOWN_ROUNDS if high > _MOST_ROUNDS else (low + high) / 2


def _at_start(node: Node, value: Value) -> Value | None:
    """What a value in the condition of a while loop is at first, if the condition is given it."""
    if value.is_const:
        return value
    if value.node is not None:
        return None
    constants = node.params["cond_nconsts"]
    skipped = 0 if value.index < constants else node.params["body_nconsts"]
    return node.operands[value.index + skipped]


def shares(node: Node) -> Sequence[float]:
    """How often each branch of a `cond` is expected to run.

    Where a program asks whether numbers are finite, or how large they are, they are ordinary as a rule: the
    last branch runs. Elsewhere each is as likely as any other.
    """
    count = len(node.regions)
    if _asks_for_ordinary_numbers(node.operands[0]):
        return [0.0] * (count - 1) + [1.0]
    return [1.0 / count] * count


def _asks_for_ordinary_numbers(predicate: Value) -> bool:
    stack = [predicate]
    for _ in range(_FURTHEST):
        maker = stack.pop().node if stack else None
        if maker is not None and maker.op in ("is_finite", "abs"):
            return True
        stack += maker.operands if maker is not None else []
    return False
