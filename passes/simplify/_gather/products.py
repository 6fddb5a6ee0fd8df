"""Matrix products with one-hot arrays."""

from __future__ import annotations

from typing import Final, NamedTuple

import jax
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._chains.labels import can_reorder
from lepton_jax.passes.simplify._gather.moves import add_rows, take_rows
from lepton_jax.passes.simplify._gather.one_hot import OneHot, Places, one_hot, spread
from lepton_jax.passes.simplify._movement.common import is_free, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_BACKENDS: Final = ("cpu", "gpu")
"""On a TPU products are so fast, and gathers so slow, that the one-hot form is the better one."""

_MAKERS: Final = frozenset({"convert_element_type", "select_n"})

Pair = tuple[tuple[int, ...], tuple[int, ...]]


class Reading(NamedTuple):
    """A product, seen from its one-hot operand.

    Attributes:
        side: which operand is one-hot along an axis.
        hot: what it is made of; it has an index for each of the operand's other dimensions.
        axis: the axis.
        contract: the summed dimensions of the one-hot operand and of the other one.
        batch: their batch dimensions.
    """

    side: int
    hot: OneHot
    axis: int
    contract: Pair
    batch: Pair


def _read(node: Node) -> Reading | None:
    """The product as one with a one-hot operand, if the other one can be picked from or added up."""
    for side, value in enumerate(node.operands):
        if value.node is None or value.node.op not in _MAKERS:
            continue
        hot = one_hot(value)
        if hot is None or hot.axis is None or hot.axis in hot.covered():
            continue
        rest = {d for d, n in enumerate(value.shape) if d != hot.axis and n != 1}
        if rest <= hot.covered():
            usable = is_free(node) and can_reorder_or_half(node.operands[1 - side], node.result)
            contract, batch = (_ordered(pair, side) for pair in node.params["dimension_numbers"])
            return Reading(side, hot, hot.axis, contract, batch) if usable else None
    return None


def can_reorder_or_half(*values: Value) -> bool:
    """Whether the values are numbers of at least 8 bits (float16 too: nothing is multiplied here)."""
    return all(can_reorder(v.dtype) or str(v.dtype) == "float16" for v in values)


def _ordered(pair: Pair, side: int) -> Pair:
    """Dimensions of both operands, those of the operand at `side` first."""
    left, right = map(tuple, pair)
    return (left, right) if side == 0 else (right, left)


@movement_rule("dot_general", level="reassociate", backends=_BACKENDS, must_pay=True)
def product_with_one_hot(node: Node, ctx: PassContext) -> Outcome:
    """one_hot(i, n) @ T → T[i], with rows of zeros where i is not in 0 … n - 1.

    Also T.T @ one_hot(i).T, batches of them, and sums of picked elements (einsum "nv,nv->"). What the zeros
    would have made of infinities and NaN in rows that are not taken, does not happen.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only gather`.
    """
    found = _read(node)
    if found is None or found.axis not in found.contract[0]:
        return None
    side, hot, axis, contract, batch = found
    return rewrite(
        _taken,
        hot.index,
        node.operands[1 - side],
        places=hot.places,
        shape=node.operands[side].shape,
        axis=axis,
        contract=contract,
        batch=batch,
        first=side == 0,
        dtype=node.result.dtype,
    )


def _taken(
    index: jax.Array,
    table: jax.Array,
    places: Places,
    shape: tuple[int, ...],
    axis: int,
    contract: Pair,
    batch: Pair,
    first: bool,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    pairs = dict(zip(*contract, strict=True))
    at = pairs.pop(axis)
    summed = tuple(pairs)
    free = [d for d in range(len(shape)) if d not in (axis, *summed, *batch[0])]
    together = (*batch[0], *summed)
    numbers = spread(index, places, shape, (*together, *free))
    offset = len(together) + (len(free) if first else 0)
    rows = take_rows(table, numbers, at, offset, (*batch[1], *(pairs[d] for d in summed)))
    if summed:
        rows = rows.sum(tuple(range(len(batch[0]), len(together))))
    return rows.astype(dtype)


@movement_rule("dot_general", level="reassociate", backends=_BACKENDS, must_pay=True)
def product_with_one_hot_transposed(node: Node, ctx: PassContext) -> Outcome:
    """one_hot(i, n).T @ Y → zeros(n).at[i].add(Y): the gradient of one_hot(i) @ T, and sums by class.

    Rows whose index is not in 0 … n - 1 are left out. What the zeros would have made of infinities and
    NaN in rows of other classes, does not happen.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only gather`.
    """
    found = _read(node)
    if found is None:
        return None
    side, hot, axis, contract, batch = found
    if axis in (*contract[0], *batch[0]) or not contract[0]:
        return None
    hot_shape = node.operands[side].shape
    if len(hot_shape) != 1 + len(contract[0]) + len(batch[0]):
        return None
    return rewrite(
        _added,
        hot.index,
        node.operands[1 - side],
        places=hot.places,
        shape=hot_shape,
        count=hot_shape[axis],
        contract=contract,
        batch=batch,
        first=side == 0,
        dtype=node.result.dtype,
    )


def _added(
    index: jax.Array,
    rows: jax.Array,
    places: Places,
    shape: tuple[int, ...],
    count: int,
    contract: Pair,
    batch: Pair,
    first: bool,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    free = [d for d in range(rows.ndim) if d not in (*contract[1], *batch[1])]
    numbers = spread(index, places, shape, (*batch[0], *contract[0]))
    ordered = lax.transpose(rows, (*batch[1], *contract[1], *free))

    def add(rows: jax.Array, numbers: jax.Array) -> jax.Array:
        total = add_rows(rows, numbers, count, dtype)
        return total if first else lax.transpose(total, (*range(1, total.ndim), 0))

    for _ in batch[0]:
        add = jax.vmap(add)
    return add(ordered, numbers)


RULES: Final[tuple[Rule, ...]] = (product_with_one_hot, product_with_one_hot_transposed)
