"""Whole numbers in the body of a loop that grow by the same amount in each iteration."""

from __future__ import annotations

from typing import Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value

Place = tuple[int, int]
"""(first, by): the number is first + by · k in iteration k."""

_SAME: Final = frozenset({"convert_element_type", "broadcast_in_dim", "squeeze", "reshape", "copy"})


def known_number(value: Value) -> int | None:
    """A whole number that is known before the program runs."""
    if _jax.is_extended(value.dtype) or not np.issubdtype(value.dtype, np.integer):
        return None
    known = facts_of(value).splat
    return None if known is None else int(known)


def step_of(carry: Value, after: Value) -> int | None:
    """By how much an integer scalar grows in each iteration, where that is a known number."""
    add = after.node
    if add is None or add.op not in ("add", "sub") or carry.ndim or len(add.operands) != 2:
        return None
    left, right = add.operands
    if left is not carry:
        left, right = right, left
        if add.op == "sub":
            return None
    if left is not carry or not right.is_const:
        return None
    by = known_number(right)
    return None if by is None else by if add.op == "add" else -by


class Places:
    """Finds the places of values of a body.

    Args:
        counters: the carries that count, with their places.
        length: the number of iterations.
    """

    def __init__(self, counters: dict[Value, Place], length: int) -> None:
        self.length = length
        self._known: dict[Value, Place | None] = dict(counters)

    def of(self, value: Value) -> Place | None:
        """The place of a value of one element, or None."""
        if value in self._known:
            return self._known[value]
        self._known[value] = found = self._find(value)
        return found

    def _find(self, value: Value) -> Place | None:
        if value.is_const:
            number = known_number(value)
            return None if number is None else (number, 0)
        node = value.node
        if node is None or _jax.is_extended(value.dtype) or not np.issubdtype(value.dtype, np.integer):
            return None
        if node.op == "select_n":
            return self._chosen(node)
        if node.op in _SAME and np.prod(value.shape) == 1:
            return self.of(node.operands[0])
        if node.op not in ("add", "sub"):
            return None
        left, right = map(self.of, node.operands)
        if left is None or right is None:
            return None
        sign = 1 if node.op == "add" else -1
        return left[0] + sign * right[0], left[1] + sign * right[1]

    def _chosen(self, node: Node) -> Place | None:
        """A choice that falls the same in every iteration, such as whether an index counts from the end."""
        which = node.operands[0].node
        if len(node.operands) != 3 or which is None or which.op not in ("lt", "ge"):
            return None
        left, right = map(self.of, which.operands)
        if left is None or right is None:
            return None
        ends = [left[0] - right[0] + (left[1] - right[1]) * k for k in (0, self.length - 1)]
        falls = {(end < 0) == (which.op == "lt") for end in ends}
        return self.of(node.operands[1 + falls.pop()]) if len(falls) == 1 else None
