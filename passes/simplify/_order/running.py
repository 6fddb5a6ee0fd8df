"""Running sums, products and extremes of which only one entry is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import made_by, movement_rule, size
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

Fold = Callable[[jax.Array, tuple[int, ...]], jax.Array]

_FOLDS: Final[dict[str, Fold]] = {
    "cumsum": lax.reduce_sum,
    "cumprod": lax.reduce_prod,
    "cummax": lax.reduce_max,
    "cummin": lax.reduce_min,
}


@movement_rule("slice", level="reassociate")
def entry_of_running(node: Node, ctx: PassContext) -> Outcome:
    """cumsum(x)[-1] → sum(x), cumsum(x)[i] → sum(x[:i + 1]), and of cumprod, cummax and cummin

    Not for floating-point numbers of 16 bits, whose running sums round at every step.
    10× for the last of 4096 (`python benchmarks/rewrites.py --only order`).
    """
    inner = made_by(node.operands[0], node, *_FOLDS)
    if inner is None or len(inner.result.uses) != 1 or size(node.result.shape) == 0:
        return None
    axis = int(inner.params["axis"])
    if node.result.shape[axis] != 1 or node.operands[0].shape[axis] < 2:
        return None
    kind = node.result.dtype
    if jnp.issubdtype(kind, np.inexact) and kind.itemsize < 4:
        return None
    start, limit = list(node.params["start_indices"]), list(node.params["limit_indices"])
    place, length = start[axis], node.operands[0].shape[axis]
    start[axis], limit[axis] = (place, length) if inner.params["reverse"] else (0, place + 1)
    strides = node.params["strides"]
    if strides is not None:
        strides = tuple(1 if d == axis else s for d, s in enumerate(strides))
    part = (tuple(start), tuple(limit), strides)
    return rewrite(folded, inner.operands[0], op=inner.op, axis=axis, part=part)


def folded(x: jax.Array, *, op: str, axis: int, part: tuple[Any, Any, Any]) -> jax.Array:
    """A part of `x`, folded along an axis to one entry."""
    start, limit, strides = part
    whole = not any(start) and limit == x.shape and (strides is None or all(s == 1 for s in strides))
    return lax.expand_dims(_FOLDS[op](x if whole else lax.slice(x, start, limit, strides), (axis,)), (axis,))


RULES: Final[tuple[Rule, ...]] = (entry_of_running,)
