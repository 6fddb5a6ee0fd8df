"""Running sums, products and extremes of which only one entry is read."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import made_by, movement_rule, size
from lepton_jax.passes.simplify._order.sorts import Fold, folded_with_nan
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

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
    part, op = (tuple(start), tuple(limit), strides), inner.op
    careful = op in ("cummax", "cummin") and ctx.rates.platform == "cpu"
    return rewrite(folded, inner.operands[0], op=op, axis=axis, part=part, careful=careful)


def folded(x: jax.Array, *, op: str, axis: int, part: tuple[Any, Any, Any], careful: bool) -> jax.Array:
    """A part of `x`, folded along an axis to one entry; see `folded_with_nan` for `careful`."""
    start, limit, strides = part
    whole = not any(start) and limit == x.shape and (strides is None or all(s == 1 for s in strides))
    x = x if whole else lax.slice(x, start, limit, strides)
    found = folded_with_nan(x, _FOLDS[op], axis) if careful else _FOLDS[op](x, (axis,))
    return lax.expand_dims(found, (axis,))


RULES: Final[tuple[Rule, ...]] = (entry_of_running,)
