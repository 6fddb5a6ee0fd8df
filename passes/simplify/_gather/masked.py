"""Masked sums of the same rows by several masks, as a matrix product."""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import is_free, movement_rule, spread_from
from lepton_jax.rewrite import PassContext, Rule, profit, rewrite
from lepton_jax.rewrite.rule import Outcome

_LEAST_WORK: Final = 2**16
_FEWEST: Final = 4
"""Multiplications in all, and entries of either operand that the other one has not, from which it pays."""

Dims = tuple[int, ...]


@movement_rule("reduce_sum", level="reassociate", backends=("cpu",))
def sum_by_masks(node: Node, ctx: PassContext) -> Outcome:
    """sum(where(mask[:, :, None], x[None], 0), 1) → mask @ x, if that is finite; else as it stands

    Several masks over the same rows. What a mask hides does not count, be it infinite or NaN; in a product
    it does, since 0 * inf is NaN: whatever of x is not finite shows in the product, and then the program
    adds up as before. The product must be finite, so what overflows is added up as before too
    (`python benchmarks/rewrites.py --only gather`).
    """
    inner = node.operands[0].node
    if inner is None or inner.op != "select_n" or len(inner.operands) != 3 or not _is_summed(node, inner):
        return None
    which, zero, chosen = inner.operands
    if which.ndim != inner.result.ndim or which.dtype != bool:
        return None
    mask, rows = spread_from(which), spread_from(chosen)
    if mask is None or rows is None or not facts_of(zero).is_zero or _is_one_of_two(node):
        return None
    if not _pays(inner.result.shape, mask[1], rows[1], node):
        return None
    return rewrite(
        summed_by_masks,
        mask[0],
        rows[0],
        places=(mask[1], rows[1]),
        axes=_axes(node),
        shape=inner.result.shape,
    )


def _is_one_of_two(node: Node) -> bool:
    """Whether the node is in a branch beside one that only hands something through: the rule was here."""
    parents = [] if node.graph is None else node.graph.parents
    return any(parent.op == "cond" and any(not list(r) for r in parent.regions) for parent in parents)


def _axes(node: Node) -> Dims:
    return tuple(int(axis) for axis in node.params["axes"])


def _is_summed(node: Node, inner: Node) -> bool:
    """Whether only this sum reads a product of numbers that are not short."""
    kind = inner.result.dtype
    wide = bool(jnp.issubdtype(kind, np.floating)) and kind.itemsize >= 4
    return wide and len(inner.result.uses) == 1 and inner.context is node.context and is_free(node)


def _pays(shape: Dims, a: Dims, b: Dims, node: Node) -> bool:
    """Whether it is a matrix product, and no small one."""
    axes = set(_axes(node))
    if not axes <= set(a) & set(b) or set(a) | set(b) != set(range(len(shape))):
        return False
    own = [math.prod(shape[d] for d in one if d not in other) for one, other in ((a, b), (b, a))]
    large = min(own) >= _FEWEST and math.prod(shape) >= _LEAST_WORK
    return large or (profit.is_disregarded() and min(own) > 1)


def summed_product(
    a: jax.Array, b: jax.Array, *, places: tuple[Dims, Dims], axes: Dims, shape: Dims
) -> jax.Array:
    """The product of two arrays whose dimensions are some of those of `shape`, summed over `axes`."""
    left, right = places
    both = [d for d in left if d in right and d not in axes]
    numbers: Any = tuple(
        (tuple(left.index(d) for d in dims), tuple(right.index(d) for d in dims)) for dims in (axes, both)
    )
    made = lax.dot_general(a, b, numbers, precision=lax.Precision.HIGHEST)
    order = [*both, *(d for d in left if d not in right), *(d for d in right if d not in left)]
    back = [order.index(d) for d in range(len(shape)) if d not in axes]
    return made if back == sorted(back) else lax.transpose(made, back)


def summed_by_masks(
    mask: jax.Array, rows: jax.Array, *, places: tuple[Dims, Dims], axes: Dims, shape: Dims
) -> jax.Array:
    """The sums of the rows that masks choose."""

    def apart(mask: jax.Array, rows: jax.Array, made: jax.Array) -> jax.Array:
        which = lax.broadcast_in_dim(mask, shape, places[0])
        wide = lax.broadcast_in_dim(rows, shape, places[1])
        return lax.reduce_sum(lax.select(which, wide, lax.full_like(wide, 0)), axes)

    made = summed_product(mask.astype(rows.dtype), rows, places=places, axes=axes, shape=shape)
    finite = lax.reduce_and(lax.is_finite(made), tuple(range(made.ndim)))
    kept: jax.Array = lax.cond(finite, lambda mask, rows, made: made, apart, mask, rows, made)
    return kept


RULES: Final[tuple[Rule, ...]] = (sum_by_masks,)
