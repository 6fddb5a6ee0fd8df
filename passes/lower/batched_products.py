"""Products of batches of matrices, as attention's, in the form that a CPU copies in whole rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import (
    bind,
    changed,
    is_free,
    made_by,
    movement_rule,
    used_once,
)
from lepton_jax.passes.simplify._movement.dots import swapped_product
from lepton_jax.rewrite import PassContext, Rule, RulePass, rewrite
from lepton_jax.rewrite.rule import Outcome

_LEAST_PRODUCTS: Final = 256
"""Multiplications in each matrix below which nothing is gained, and XLA has code of its own: that of jax 0.10
aborts over some tiny products of one array in two orders."""

_FEW_ROWS: Final = 4
"""Rows below which an operand that lies in memory already is best read as it lies there."""

_FLOATS: Final = (jnp.float32, jnp.bfloat16)

_VIEWS: Final = frozenset({"reshape", "squeeze", "transpose", "name", "stop_gradient"})
_FUSED: Final = frozenset(
    {"add", "sub", "mul", "div", "neg", "max", "min", "exp", "log", "tanh", "logistic", "rsqrt", "sqrt"}
    | {"square", "integer_pow", "pow", "select_n", "convert_element_type", "slice", "split", "concatenate"}
    | {"clamp", "sin", "cos", "erf", "exp2", "expm1", "log1p", "abs", "sign", "floor", "round"}
)
"""Operations that XLA computes while it writes their result in another order."""


@movement_rule("transpose", level="reassociate", backends=("cpu",))
def last_stays_last(node: Node, ctx: PassContext) -> Outcome:
    """transpose(dot(a, b)) → transpose(dot(b, a)), where the last dimension is a's last, in batches

    `jnp.einsum("bhqk,bkhd->bqhd", weights, values)` is a product of values and weights whose result
    [b, h, d, q] is transposed. As [b, h, q, d] it goes to [b, q, h, d] in whole rows, and the values are
    read in rows too.
    """
    inner = made_by(node.operands[0], node, "dot_general")
    order = tuple(node.params["permutation"])
    product = None if inner is None or not is_free(node) else _swapped(inner, last=order[-1])
    if inner is None or product is None:
        return None
    moved = tuple(_place(inner, d) for d in order)
    return rewrite(_transposed, *inner.operands[::-1], permutation=moved, **product)


def _transposed(b: jax.Array, a: jax.Array, *, permutation: tuple[int, ...], **product: Any) -> jax.Array:
    return lax.transpose(bind(b, a, **product), permutation)


@movement_rule("dot_general", level="reassociate", backends=("cpu",))
def summed_last(node: Node, ctx: PassContext) -> Outcome:
    """dot(dot(a, b), c) that sums over a's last dimension, not b's → dot(dot(b, a), c), the first in batches

    As `last-stays-last`, where the transpose is in the numbers of the next product: attention as Flax has
    it, whose results go to a product over heads and their width.
    """
    sums, batches = node.params["dimension_numbers"]
    for side, value in enumerate(node.operands):
        inner = made_by(value, node, "dot_general")
        if inner is None or not is_free(node) or value.ndim - 1 in sums[side]:
            continue
        product = _swapped(inner, last=max(sums[side], default=0))
        if product is None:
            continue
        kept = [_place(inner, d) for d in range(value.ndim) if d not in (*sums[side], *batches[side])]
        if kept != sorted(kept):
            continue
        moved = [[list(dims) for dims in both] for both in (sums, batches)]
        for both in moved:
            both[side] = [_place(inner, d) for d in both[side]]
        order = sorted(range(len(sums[side])), key=moved[0][side].__getitem__)
        moved[0] = [[dims[i] for i in order] for dims in moved[0]]
        numbers = tuple(tuple(map(tuple, both)) for both in moved)
        operands = *inner.operands[::-1], node.operands[1 - side]
        how = changed(node, dimension_numbers=numbers)
        return rewrite(
            _of_swapped, *operands, inner=tuple(product.items()), outer=tuple(how.items()), side=side
        )
    return None


def _of_swapped(b: jax.Array, a: jax.Array, other: jax.Array, *, inner: Any, outer: Any, side: int) -> Any:
    product = bind(b, a, **dict(inner))
    return bind(*((product, other) if side == 0 else (other, product)), **dict(outer))


def _swapped(product: Node, last: int) -> dict[str, Any] | None:
    """How to `bind` a product in batches with its operands swapped, where `last` becomes its last dimension.

    None where it does not, where something else reads the product, or where one of its operands has few
    rows and the other lies in memory already.
    """
    if not used_once(product.result) or not _is_batched(product, *_FLOATS):
        return None
    batch, left, right = _parts(product)
    if not left or not right or last != batch + len(left) - 1:
        return None
    if min(math.prod(left), math.prod(right)) < _FEW_ROWS and not _is_fused(product.operands[0]):
        return None
    return swapped_product(product)


def _place(product: Node, dim: int) -> int:
    """Where a dimension of a product's result is when its operands are swapped."""
    batch, left, right = _parts(product)
    if dim < batch:
        return dim
    return dim + len(right) if dim < batch + len(left) else dim - len(left)


@movement_rule("dot_general", level="reassociate", backends=("cpu",))
def batch_first(node: Node, ctx: PassContext) -> Outcome:
    """dot(a, b) with batches in the middle of b → dot(transpose(a), transpose(b)) with batches first

    `jnp.einsum("bqhd,bkhd->bhqk", queries, keys)`, where the keys were just computed: XLA writes them as
    [b, h, d, k] otherwise, number by number. What lies in memory is left to be read as it lies there.
    """
    if not _is_batched(node, *_FLOATS) or not is_free(node):
        return None
    (left, right), batches = node.params["dimension_numbers"]
    a, b = node.operands
    if len(left) != 1 or right[0] != b.ndim - 1 or any(len(part) != 1 for part in _parts(node)[1:]):
        return None
    orders = [_batches_first(x, batch) for x, batch in zip((a, b), batches, strict=True)]
    turned = [order != tuple(range(len(order))) for order in orders]
    if not turned[1] or not all(_is_fused(x) for x, turn in zip((a, b), turned, strict=True) if turn):
        return None
    first = tuple(range(len(batches[0])))
    sums = tuple((order.index(dims[0]),) for order, dims in zip(orders, (left, right), strict=True))
    how = changed(node, dimension_numbers=(sums, (first, first)))
    return rewrite(_of_transposed, a, b, orders=tuple(orders), **how)


def _of_transposed(a: jax.Array, b: jax.Array, *, orders: Any, **product: Any) -> Any:
    return bind(lax.transpose(a, orders[0]), lax.transpose(b, orders[1]), **product)


@movement_rule("dot_general", backends=("cpu",))
def int8_rows_on_the_left(node: Node, ctx: PassContext) -> Outcome:
    """dot(a, b) of int8 in batches, a summed over its columns, b over its rows → transpose(dot(b, a))

    Values in codes and weights in codes, as `quantize-attention` and `kv-cache` make them: XLA's library for
    CPUs multiplies rows with columns, and the other way round XLA widens both to int32 and loops.
    """
    (left, right), _ = node.params["dimension_numbers"]
    a, b = node.operands
    if not _is_batched(node, jnp.int8):
        return None
    if not left or a.ndim - 1 in left or b.ndim - 1 not in right:
        return None
    product = swapped_product(node)
    if product is None:
        return None
    permutation = tuple(_place(node, d) for d in range(node.result.ndim))
    return rewrite(_transposed, b, a, permutation=permutation, **product)


def _is_batched(node: Node, *dtypes: Any) -> bool:
    """Whether it is a product of matrices of these types in batches, and not a tiny one."""
    if any(value.dtype not in dtypes for value in node.operands) or not is_free(node):
        return False
    (left, _), (batch, _) = node.params["dimension_numbers"]
    summed = math.prod(node.operands[0].shape[d] for d in left)
    one = math.prod(node.result.shape[len(batch) :]) * summed
    return len(batch) > 0 and one >= _LEAST_PRODUCTS


def _parts(node: Node) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Of a product's result: the number of batch dimensions, and the sizes of its operands' own ones."""
    (left, _), (batch, _) = node.params["dimension_numbers"]
    shape, end = node.result.shape, node.operands[0].ndim - len(left)
    return len(batch), shape[len(batch) : end], shape[end:]


def _batches_first(value: Value, batch: Sequence[int]) -> tuple[int, ...]:
    return (*batch, *(d for d in range(value.ndim) if d not in batch))


def _is_fused(value: Value) -> bool:
    """Whether XLA computes an array when it writes it in the order that a product wants."""
    while value.op in _VIEWS and value.node is not None:
        value = value.node.operands[0]
    return value.op in _FUSED


RULES: Final[tuple[Rule, ...]] = (last_stays_last, summed_last, batch_first, int8_rows_on_the_left)


@dataclass(frozen=True)
class BatchedProducts(RulePass):
    """Writes products of batches of matrices so that operands and results are copied in whole rows.

    Before:
        %3 = dot_general %values %weights: [b, h, d, q];  %4 = transpose %3: [b, q, h, d]
    After:
        %3 = dot_general %weights %values: [b, h, q, d];  %4 = transpose %3: [b, q, h, d]

    On CPUs. At level `reassociate`: the same products are summed, and rounded in another order; those of
    int8 at `exact`.
    """

    name: ClassVar[str] = "batched-products"
    rules: ClassVar[Sequence[Rule]] = RULES
