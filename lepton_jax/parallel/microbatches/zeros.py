"""Arrays of zeros, also where a loop is given them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Value
from lepton_jax.ir.regions import outer_of
from lepton_jax.parallel.factors import zeros

_LARGEST: Final = 1 << 20
"""Constants of more elements are not read."""

_KEEP: Final = frozenset(
    {"broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "transpose", "copy", "stop_gradient"}
)


def is_zero(value: Value, others: Collection[Value] = ()) -> bool:
    """Whether an array is known to hold zeros alone.

    Args:
        others: that do.
    """
    while value not in others:
        if value.node is not None and value.node.op in _KEEP:
            value = value.node.operands[0]
            continue
        if value.graph is None or len(value.graph.parents) != 1:
            return _is_zero(value)
        outer = outer_of(value.graph.parents[0], value.graph).get(value)
        if outer is None:
            return False
        value = outer
    return True


def _is_zero(value: Value) -> bool:
    if zeros.is_zero(value):
        return True
    if not value.is_const or not 1 < getattr(value.const, "size", 0) <= _LARGEST:
        return False
    plain = _jax.plain_constant(value.const)
    return plain is not None and plain.dtype.kind in "fiucV" and not np.any(plain.astype(np.complex64))
