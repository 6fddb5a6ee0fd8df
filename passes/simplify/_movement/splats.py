"""Arrays that are one number throughout: moving their elements about changes nothing."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import is_plain, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome


def fill(*, shape: tuple[int, ...], dtype: str, bits: bytes) -> jax.Array:
    """One number throughout; it comes as bits, so that 0.0 and -0.0 differ as cache keys."""
    number: Any = np.frombuffer(bits, jnp.dtype(dtype))[0]
    return lax.full(shape, number)


_MOVING: Final = (
    "transpose",
    "reshape",
    "squeeze",
    "rev",
    "slice",
    "concatenate",
    "pad",
    "dynamic_slice",
    "dynamic_update_slice",
    "broadcast_in_dim",
    "stack",
    "tile",
)

_DEEPEST: Final = 8
"""So many moves are looked through in search of a constant."""


@movement_rule(*_MOVING)
def movement_of_splat(node: Node, ctx: PassContext) -> Outcome:
    """transpose, reshape, slice, concatenate, pad, … of one number throughout → that number repeated"""
    if not is_plain(node.result) or (node.op == "broadcast_in_dim" and node.operands[0].ndim == 0):
        return None
    moved = node.operands[:1] if node.op == "dynamic_slice" else node.operands[:2]
    if not all(map(_may_be_splat, moved)):
        return None
    number = facts_of(node.result).splat
    if number is None:
        return None
    number = np.asarray(number)
    return rewrite(fill, shape=node.result.shape, dtype=number.dtype.name, bits=number.tobytes())


def _may_be_splat(value: Value) -> bool:
    """A cheap question before the one for facts: whether it is a constant, or one that was moved about."""
    for _ in range(_DEEPEST):
        if value.is_const:
            return True
        if value.node is None or value.node.op not in _MOVING:
            return False
        value = value.node.operands[0]
    return False


RULES: Final[tuple[Rule, ...]] = (movement_of_splat,)
