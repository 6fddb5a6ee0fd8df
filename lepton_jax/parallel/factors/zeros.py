"""Which arrays hold nothing but zeros: a part of a sum is one with or without them."""

from __future__ import annotations

from typing import Final

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Value

_KEEP: Final = frozenset(
    {"broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "transpose", "copy", "neg", "slice"}
)


def is_zero(value: Value) -> bool:
    """Whether an array is made of one constant 0 and nothing else; larger constants are not read."""
    while value.node is not None and value.node.op in _KEEP:
        value = value.node.operands[0]
    if not value.is_const or getattr(value.const, "size", 1) != 1 or value.dtype is None:
        return False
    if not jnp.issubdtype(value.dtype, jnp.number):
        return False
    return not np.any(np.asarray(value.const))


def jointly(values: dict[int, Value]) -> list[set[int]]:
    """The sets of operands that an operation is linear in as a whole: all, or all that are not zero.

    Args:
        values: those operands by position.
    """
    filled = {position for position, value in values.items() if not is_zero(value)}
    sets = [set(values)]
    if filled and filled != sets[0]:
        sets.append(filled)
    return sets
