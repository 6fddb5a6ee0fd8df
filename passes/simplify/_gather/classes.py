"""Sums over the members of classes."""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._gather.moves import add_rows
from lepton_jax.passes.simplify._gather.one_hot import OneHot, Places, spread
from lepton_jax.passes.simplify._gather.picks import Product, is_product, product_of
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_BACKENDS: Final = ("cpu", "gpu")


@movement_rule("reduce_sum", level="reassociate", backends=_BACKENDS, must_pay=True)
def sum_by_class(node: Node, ctx: PassContext) -> Outcome:
    """sum(where(i[:, None] == arange(n), x[:, None], 0), 0) → zeros(n).at[i].add(x)

    Also products with one-hot arrays, and counts: sum(one_hot(i, n), 0) → zeros(n).at[i].add(1).

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only gather`.
    """
    value = node.operands[0]
    product = product_of(value) if is_product(value) else None
    if product is None or product.hot.axis is None or product.hot.axis in node.params["axes"]:
        return None
    hot, axis = product.hot, product.hot.axis
    assert axis is not None
    if not hot.covered() <= set(node.params["axes"]) or value.shape[axis] == 1:
        return None
    sources = [_without(f, axis, value) for f in product.others]
    if any(s is None for s in sources):
        return None
    found = [s for s in sources if s is not None]
    return rewrite(
        _summed,
        hot.index,
        *(source for source, _ in found),
        places=hot.places,
        sources=tuple(where for _, where in found),
        shape=value.shape,
        axis=axis,
        axes=tuple(node.params["axes"]),
        negative=product.negative,
        dtype=value.dtype,
    )


def _without(value: Value, axis: int, full: Value) -> tuple[Value, Places] | None:
    """A factor that is the same along the axis: what it is spread from, and where its dimensions are."""
    if value.dtype != full.dtype:
        return None
    if value.ndim == 0:
        return value, ()
    if value.ndim != full.ndim:
        return None
    kept = tuple(d if n == full.shape[d] and d != axis else None for d, n in enumerate(value.shape))
    if value.shape[axis] == 1:
        return value, kept
    node = value.node
    if node is None or node.op != "broadcast_in_dim":
        return None
    source, dimensions = node.operands[0], node.params["broadcast_dimensions"]
    inner = tuple(kept[d] if source.shape[i] == value.shape[d] else None for i, d in enumerate(dimensions))
    return (
        (source, inner)
        if all(p is not None or n == 1 for p, n in zip(inner, source.shape, strict=True))
        else None
    )


def _summed(
    index: jax.Array,
    *factors: jax.Array,
    places: Places,
    sources: tuple[Places, ...],
    shape: tuple[int, ...],
    axis: int,
    axes: tuple[int, ...],
    negative: bool,
    dtype: Any,
) -> jax.Array:
    rest = [d for d in range(len(shape)) if d not in (axis, *axes)]
    dims = (*axes, *rest)
    arrays = [spread(f, where, shape, dims) for f, where in zip(factors, sources, strict=True)]
    ones = jnp.ones([shape[d] for d in dims], dtype)
    rows = math.prod(arrays[1:], start=arrays[0]) if arrays else ones
    total = add_rows(
        lax.neg(rows) if negative else rows, spread(index, places, shape, axes), shape[axis], dtype
    )
    return jnp.moveaxis(total, 0, sum(d < axis for d in rest))


@movement_rule("stack", level="reassociate", backends=_BACKENDS, must_pay=True)
def stack_of_masked_sums(node: Node, ctx: PassContext) -> Outcome:
    """stack([sum(where(i == k, x, 0)) for k in range(n)]) → zeros(n).at[i].add(x)

    Where all compare the same array, with numbers that follow one another, and sum the same values.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only gather`.
    """
    parts = [_part(value) for value in node.operands]
    first = parts[0]
    if first is None or len(parts) < 2:
        return None
    base, axes, whole = first
    start = base.hot.number
    for k, part in enumerate(parts):
        if part is None or start is None or not _matches(part[0], base, start + k) or part[1] != axes:
            return None
    if not base.hot.covered() <= set(axes):
        return None
    return rewrite(
        _stacked,
        base.hot.index,
        *base.others,
        places=base.hot.places,
        shape=whole.shape,
        axes=axes,
        start=start,
        count=len(parts),
        negative=base.negative,
        at=node.params["axis"],
        dtype=whole.dtype,
    )


def _part(value: Value) -> tuple[Product, tuple[int, ...], Value] | None:
    """One of the sums: its product, the axes, and the array that is summed."""
    node = value.node
    if node is None or node.op != "reduce_sum" or len(value.uses) != 1:
        return None
    inner = node.operands[0]
    product = product_of(inner) if is_product(inner) else None
    if product is None or product.hot.number is None:
        return None
    if any(f.dtype != inner.dtype or f.ndim not in (0, inner.ndim) for f in product.others):
        return None
    return product, tuple(node.params["axes"]), inner


def is_masked_sum(value: Value) -> bool:
    """Whether a value is the sum of what a comparison with a number chooses."""
    return _part(value) is not None


def _matches(part: Product, base: Product, number: int) -> bool:
    hot: OneHot = part.hot
    return (
        hot.index is base.hot.index
        and hot.places == base.hot.places
        and hot.number == number
        and part.negative == base.negative
        and len(part.others) == len(base.others)
        and all(a is b for a, b in zip(part.others, base.others, strict=True))
    )


def _stacked(
    index: jax.Array,
    *factors: jax.Array,
    places: Places,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    start: int,
    count: int,
    negative: bool,
    at: int,
    dtype: Any,
) -> jax.Array:
    order = (*axes, *(d for d in range(len(shape)) if d not in axes))
    full = [jnp.broadcast_to(f, shape) for f in factors]
    rows = lax.transpose(math.prod(full[1:], start=full[0]) if full else jnp.ones(shape, dtype), order)
    numbers = spread(index, places, shape, axes)
    if start:
        numbers = lax.sub(numbers, jnp.full_like(numbers, start))
    total = add_rows(lax.neg(rows) if negative else rows, numbers, count, dtype)
    return jnp.moveaxis(total, 0, at)


RULES: Final[tuple[Rule, ...]] = (sum_by_class, stack_of_masked_sums)
