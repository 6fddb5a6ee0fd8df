"""Names for the dimensions of products, as einsum has them: a label is a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Node

Labels = tuple[int, ...]


def operand_labels(
    node: Node, output: Sequence[int], fresh: Callable[[int, int], int]
) -> tuple[Labels, Labels]:
    """The labels of a dot_general's operands, from those of its result.

    Args:
        output: the labels of the result's dimensions.
        fresh: makes the label of a summed pair, from the dimension of the first and of the second operand.
    """
    (left_sum, right_sum), (left_batch, right_batch) = node.params["dimension_numbers"]
    a, b = node.operands
    left, right = [-1] * a.ndim, [-1] * b.ndim
    rest = iter(output)
    for i, j in zip(left_batch, right_batch, strict=True):
        left[i] = right[j] = next(rest)
    for i, j in zip(left_sum, right_sum, strict=True):
        left[i] = right[j] = fresh(i, j)
    for labels in (left, right):
        for d, label in enumerate(labels):
            if label < 0:
                labels[d] = next(rest)
    return tuple(left), tuple(right)


@cache
def can_reorder(dtype: Any) -> bool:
    """Whether products of this dtype may be reordered.

    Integers wrap alike in every order. Floating numbers need the exponents of float32: in float16
    another order overflows too easily.
    """
    if dtype == np.bool_ or not jnp.issubdtype(dtype, np.number):
        return False
    if jnp.issubdtype(dtype, np.integer):
        return bool(jnp.iinfo(dtype).bits >= 8)
    return bool(jnp.finfo(dtype).maxexp >= jnp.finfo(np.float32).maxexp)


def is_plain_dot(node: Node) -> bool:
    """Whether a dot_general has one dtype throughout, one precision for both operands, and no sharding."""
    a, b = node.operands
    if not (a.dtype == b.dtype == node.result.dtype and can_reorder(a.dtype)):
        return False
    precision = node.params.get("precision")
    same = not isinstance(precision, tuple) or precision[0] == precision[1]
    return same and node.params.get("out_sharding") is None


def agrees(inner: Node, outer: Node) -> bool:
    """Whether two plain products compute alike: dtype, precision, context."""
    return (
        is_plain_dot(inner)
        and inner.result.dtype == outer.result.dtype
        and inner.params.get("precision") == outer.params.get("precision")
        and inner.context is outer.context
    )
