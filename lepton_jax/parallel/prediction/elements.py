"""Which operations work on elements, and run within those that read what they make."""

from __future__ import annotations

import math
from typing import Final

from lepton_jax.ir.graph import Node
from lepton_jax.parallel.factors.elementwise import ELEMENTWISE
from lepton_jax.parallel.prediction.values import is_made
from lepton_jax.parallel.prediction.windows import PRODUCTS

FUSED: Final = (ELEMENTWISE - {"optimization_barrier"}) | {
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "iota", "rev", "slice", "pad"),
    *("shard_hint", "sharding_constraint", "stop_gradient", "concatenate"),
}
RENAMED: Final = frozenset(
    {
        *("reshape", "transpose", "squeeze", "expand_dims"),
        *("shard_hint", "sharding_constraint", "stop_gradient"),
    }
)
"""What a product reads as it lies."""
WINDOWS: Final = frozenset(
    {
        *("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"),
        *("select_and_scatter_add", "select_and_gather_add"),
    }
)
"""What reads windows of an array that is written down."""
EXPONENTIALS: Final = frozenset({"exp", "exp2"})


def puts_one(node: Node) -> bool:
    """Whether a node puts one element into each row of zeros, as the gradient of a choice from each row does.

    XLA for TPUs compares positions with the index instead of scattering.
    """
    if node.op not in ("scatter-add", "scatter"):
        return False
    numbers = node.params["dimension_numbers"]
    rows = node.operands[0]
    if not is_made(rows) or numbers.update_window_dims or len(numbers.operand_batching_dims) != rows.ndim - 1:
        return False
    (chosen,) = set(range(rows.ndim)) - set(numbers.operand_batching_dims)
    return bool(math.prod(rows.shape) == math.prod(node.operands[2].shape) * rows.shape[chosen])


def reads_elements(node: Node) -> bool:
    """Whether operations on elements run within a node, on what it reads."""
    return node.op in FUSED or node.op in PRODUCTS or node.op.startswith("reduce_")
