"""Reads of one class of each row: batched gathers and scatters, in front of arithmetic."""

from __future__ import annotations

from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import is_float, made_by
from lepton_jax.passes.simplify._gather.counting import row_numbers
from lepton_jax.passes.simplify._movement.common import bind, changed, is_free, movement_rule, size
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_LESS: Final = 4
"""Reads are moved in front of arithmetic on arrays that are so many times as large as what is read."""

_ARITHMETIC: Final = frozenset({"add", "add_any", "sub", "mul", "div", "neg", "stop_gradient"})

_EVERYWHERE: Final = (lax.GatherScatterMode.CLIP, lax.GatherScatterMode.PROMISE_IN_BOUNDS)


@movement_rule("gather")
def pick_with_units(node: Node, ctx: PassContext) -> Outcome:
    """vmap(lambda x, i: x[i]) → the gather of take_along_axis, and its dimensions of size one behind it"""
    numbers = node.params["dimension_numbers"]
    if not numbers.offset_dims or any(n != 1 for n in node.params["slice_sizes"]):
        return None
    batch = tuple(numbers.operand_batching_dims)
    collapsed = tuple(d for d in range(node.operands[0].ndim) if d not in batch)
    bare = numbers._replace(offset_dims=(), collapsed_slice_dims=collapsed)
    units = tuple(int(d) for d in numbers.offset_dims)
    return rewrite(_with_units, *node.operands, units=units, **changed(node, dimension_numbers=bare))


def _with_units(*operands: jax.Array, units: tuple[int, ...], primitive: Any, params: Any) -> jax.Array:
    return lax.expand_dims(bind(*operands, primitive=primitive, params=params), units)


@movement_rule("gather")
def pick_by_row_number(node: Node, ctx: PassContext) -> Outcome:
    """x[arange(n), i] → a gather with batching dimensions, as take_along_axis makes it; the same elements"""
    numbers, (x, index) = node.params["dimension_numbers"], node.operands
    if numbers.offset_dims or numbers.operand_batching_dims or x.ndim < 2:
        return None
    if len(numbers.start_index_map) != x.ndim:
        return None
    found = row_numbers(index, tuple(numbers.start_index_map), x.shape)
    if found is None:
        return None
    columns, column = found
    gather = lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=tuple(d for d in range(x.ndim) if d not in columns),
        start_index_map=tuple(d for d in numbers.start_index_map if d not in columns),
        operand_batching_dims=tuple(sorted(columns)),
        start_indices_batching_dims=tuple(columns[d] for d in sorted(columns)),
    )
    return rewrite(bind, x, column, **changed(node, dimension_numbers=gather))


@movement_rule("scatter-add")
def add_by_row_number(node: Node, ctx: PassContext) -> Outcome:
    """x.at[arange(n), i].add(v) → a scatter with batching dimensions; the same sums.

    It is the gradient of x[arange(n), i].
    """
    numbers, (x, index, updates) = node.params["dimension_numbers"], node.operands
    if numbers.update_window_dims or numbers.operand_batching_dims or x.ndim < 2:
        return None
    if len(numbers.scatter_dims_to_operand_dims) != x.ndim:
        return None
    found = row_numbers(index, tuple(numbers.scatter_dims_to_operand_dims), x.shape)
    if found is None:
        return None
    columns, column = found
    scatter = lax.ScatterDimensionNumbers(
        update_window_dims=(),
        inserted_window_dims=tuple(d for d in range(x.ndim) if d not in columns),
        scatter_dims_to_operand_dims=tuple(
            d for d in numbers.scatter_dims_to_operand_dims if d not in columns
        ),
        operand_batching_dims=tuple(sorted(columns)),
        scatter_indices_batching_dims=tuple(columns[d] for d in sorted(columns)),
    )
    return rewrite(bind, x, column, updates, **changed(node, dimension_numbers=scatter))


# In front of arithmetic


@movement_rule("gather")
def pick_of_arithmetic(node: Node, ctx: PassContext) -> Outcome:
    """(a - b)[i] → a[i] - b[i], for one class of each row; so are sums, products, quotients and casts

    Also where b has one element for each row. Where the index is out of bounds the result is NaN either way,
    without a gradient, or it is clipped. XLA keeps all differences in memory, since it does not fuse gathers.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only losses`: cross-entropy is 3 times as fast.
    """
    numbers, (x, index) = node.params["dimension_numbers"], node.operands
    maker = x.node
    if maker is None or not _is_arithmetic(maker) or numbers.offset_dims:
        return None
    if size(node.result.shape) * _LESS > size(x.shape) or not _is_total(node):
        return None
    batch = tuple(int(d) for d in numbers.operand_batching_dims)
    if tuple(numbers.collapsed_slice_dims) != numbers.start_index_map or len(batch) + 1 != x.ndim:
        return None
    where = tuple(int(d) for d in numbers.start_indices_batching_dims)
    kinds = tuple(_kind(v, x, batch) for v in maker.operands)
    if None in kinds or "pick" not in kinds:
        return None
    return rewrite(
        _picked,
        index,
        *maker.operands,
        kinds=kinds,
        where=where,
        batch=batch,
        shape=node.result.shape,
        fills=lax.GatherScatterMode.from_any(node.params["mode"]) not in _EVERYWHERE,
        classes=x.shape[numbers.collapsed_slice_dims[0]],
        maker=changed(maker)["primitive"],
        maker_params=changed(maker)["params"],
        gather=node.primitive,
        gather_params=tuple(sorted(node.params.items())),
    )


def _is_arithmetic(node: Node) -> bool:
    if node.op == "convert_element_type":
        return is_float(node.result) and is_float(node.operands[0]) and is_free(node)
    return node.op in _ARITHMETIC and is_float(node.result)


def _is_total(node: Node) -> bool:
    """Whether what is read out of bounds is NaN, or what is read next to the edge."""
    fill = node.params.get("fill_value")
    mode = lax.GatherScatterMode.from_any(node.params["mode"])
    return mode in _EVERYWHERE or fill is None or bool(np.isnan(fill))


def _kind(value: Value, x: Value, batch: tuple[int, ...]) -> str | None:
    """How an operand goes into what is picked: it is read by index too, or by row, or it is one number."""
    if value.ndim == 0:
        return "number"
    if value.shape == x.shape:
        return "pick"
    rows = tuple(n if d in batch else 1 for d, n in enumerate(x.shape))
    return "row" if value.shape == rows else None


def _picked(
    index: jax.Array,
    *operands: jax.Array,
    kinds: tuple[str, ...],
    where: tuple[int, ...],
    batch: tuple[int, ...],
    shape: tuple[int, ...],
    fills: bool,
    classes: int,
    maker: Any,
    maker_params: tuple[tuple[str, Any], ...],
    gather: Any,
    gather_params: tuple[tuple[str, Any], ...],
) -> Any:
    """The maker's operation on what is picked of its operands; `fills` says that NaN comes from outside."""
    params = dict(gather_params)
    places = lax.index_in_dim(index, 0, index.ndim - 1, keepdims=False)
    inside = _inside(places, classes)

    def pick(x: jax.Array, kind: str) -> Any:
        if kind == "pick":
            return gather.bind(x, index, **params)
        if kind == "number":
            return x
        rows = lax.transpose(lax.squeeze(x, tuple(d for d in range(x.ndim) if d not in batch)), order)
        spread = lax.broadcast_in_dim(rows, shape, tuple(sorted(where)))
        return lax.select(inside, spread, lax.full_like(spread, 0)) if fills else spread

    kept = [where[i] for i, _ in sorted(enumerate(batch), key=lambda pair: pair[1])]
    order = sorted(range(len(kept)), key=lambda i: kept[i])
    return maker.bind(*(pick(x, kind) for x, kind in zip(operands, kinds, strict=True)), **dict(maker_params))


# Gradients


@movement_rule("reduce_sum", level="reassociate")
def sum_of_labels(node: Node, ctx: PassContext) -> Outcome:
    """sum(zeros.at[arange(n), i].add(g), 1), one class of each row → g, zero where i is out of bounds

    It is in the gradient of every log-softmax that is read by index: one pass over all classes less.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only losses`: with its gradient, cross-entropy
    is twice as fast.
    """
    minus = made_by(node.operands[0], "neg")
    scatter = made_by(node.operands[0] if minus is None else minus.operands[0], "scatter-add")
    if scatter is None or not is_float(node.result):
        return None
    numbers, (x, index, updates) = scatter.params["dimension_numbers"], scatter.operands
    batch = tuple(int(d) for d in numbers.operand_batching_dims)
    where = tuple(int(d) for d in numbers.scatter_indices_batching_dims)
    if numbers.update_window_dims or len(batch) != x.ndim - 1 or where != tuple(range(len(batch))):
        return None
    if tuple(node.params["axes"]) != tuple(numbers.inserted_window_dims):
        return None
    if size(updates.shape) != size(node.result.shape) or not facts_of(x).is_positive_zero:
        return None
    if lax.GatherScatterMode.from_any(scatter.params["mode"]) == lax.GatherScatterMode.CLIP:
        return None
    (axis,) = numbers.inserted_window_dims
    return rewrite(
        _row_sums,
        index,
        updates,
        shape=node.result.shape,
        classes=x.shape[axis],
        negative=minus is not None,
    )


def _row_sums(
    index: jax.Array, updates: jax.Array, shape: tuple[int, ...], classes: int, negative: bool
) -> Any:
    inside = lax.reshape(_inside(lax.index_in_dim(index, 0, index.ndim - 1, keepdims=False), classes), shape)
    sums = lax.reshape(updates, shape)
    return lax.select(inside, lax.neg(sums) if negative else sums, lax.full_like(sums, 0))


def _inside(index: jax.Array, classes: int) -> Any:
    return lax.ge(index, lax.full_like(index, 0)) & lax.le(index, lax.full_like(index, classes - 1))


RULES: Final[tuple[Rule, ...]] = (
    pick_with_units,
    pick_by_row_number,
    add_by_row_number,
    pick_of_arithmetic,
    sum_of_labels,
)
