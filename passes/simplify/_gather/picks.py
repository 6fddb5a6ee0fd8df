"""Sums along the axis of a one-hot array: they pick one element of each line."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._chains.labels import can_reorder
from lepton_jax.passes.simplify._gather.moves import is_position, take_rows
from lepton_jax.passes.simplify._gather.one_hot import OneHot, Places, one_hot, spread
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_BACKENDS: Final = ("cpu", "gpu")

_MOST_FACTORS: Final = 6

_DEEPEST: Final = 4

Recipe = tuple[Any, ...]
"""How to make the picked elements: ("pick", i), ("flat", i), or an operation and its operands' recipes."""


class Product:
    """The factors of an elementwise product, one of them one-hot.

    Attributes:
        hot: the one-hot factor.
        others: the others; what `select_n` chooses is one of them.
        negative: whether the product has a minus sign.
    """

    def __init__(self, hot: OneHot, others: list[Value], negative: bool) -> None:
        self.hot = hot
        self.others = others
        self.negative = negative


def is_product(value: Value) -> bool:
    """Whether a value may be a product with a one-hot factor, of a dtype that adds up in any order."""
    node = value.node
    if node is None or not can_reorder(value.dtype):
        return False
    if node.op == "convert_element_type":
        return bool(node.operands[0].dtype == bool and node.operands[0].op in ("eq", "broadcast_in_dim"))
    return node.op in ("mul", "neg", "select_n")


def product_of(value: Value) -> Product | None:
    """A value as a product with a one-hot factor (elementwise), or a choice between something and zero."""
    factors: list[Value] = []
    stack, negative = [value], False
    while stack:
        current = stack.pop()
        node = current.node if len(current.uses) == 1 or _is_cheap(current) else None
        if node is not None and node.op == "neg":
            negative = not negative
            stack.append(node.operands[0])
        elif node is not None and node.op == "mul":
            stack += node.operands[::-1]
        elif node is not None and _chooses(node):
            factors += (node.operands[0], node.operands[2])
        else:
            factors.append(current)
        if len(factors) > _MOST_FACTORS:
            return None
    for i, factor in enumerate(factors):
        hot = _spread_to(factor, value.shape)
        if hot is not None:
            return Product(hot, factors[:i] + factors[i + 1 :], negative)
    return None


def _is_cheap(value: Value) -> bool:
    """Whether it is a multiple, which may be looked through although others read it."""
    node = value.node
    return node is not None and node.op == "mul" and any(v.ndim == 0 for v in node.operands)


def _spread_to(value: Value, shape: tuple[int, ...]) -> OneHot | None:
    """A one-hot factor of a product of this shape; it may be spread over some dimensions."""
    hot = one_hot(value) if value.ndim == len(shape) else None
    if hot is None or (hot.axis is not None and value.shape[hot.axis] != shape[hot.axis]):
        return None
    places = tuple(d if d is not None and value.shape[d] == shape[d] else None for d in hot.places)
    return replace(hot, places=places)


def _chooses(node: Node) -> bool:
    """Whether a node is what its third operand is, or zero."""
    if node.op != "select_n" or len(node.operands) != 3 or node.operands[0].shape != node.result.shape:
        return False
    zero = facts_of(node.operands[1])
    return zero.is_zero and node.operands[2].shape == node.result.shape and node.operands[0].dtype == bool


@movement_rule("reduce_sum", level="reassociate", backends=_BACKENDS, must_pay=True)
def sum_with_one_hot(node: Node, ctx: PassContext) -> Outcome:
    """sum(one_hot(i) * x, axis) → x[…, i], zero where i is no position; then the sum over further axes.

    Also with further factors, and with `where` in place of the product. What broadcasts along the axis is
    not spread: of log_softmax(x)[i] only x[i] - max - log(sum) is computed. What the
    zeros would have made of infinities and NaN beside the picked elements, does not happen.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only gather`.
    """
    value = _unwidened(node.operands[0])
    product = product_of(value) if is_product(value) else None
    if product is None or product.hot.axis not in node.params["axes"]:
        return None
    hot, axis = product.hot, product.hot.axis
    assert axis is not None
    rest = {d for d, n in enumerate(value.shape) if d != axis and n != 1}
    if axis in hot.covered() or not rest <= hot.covered():
        return None
    if any(f.dtype != value.dtype or f.ndim not in (0, value.ndim) for f in product.others):
        return None
    values: list[Value] = []
    recipes = tuple(_recipe(f, value.shape, axis, values, _DEEPEST) for f in product.others)
    return rewrite(
        _picked,
        hot.index,
        *values,
        places=hot.places,
        shape=value.shape,
        axis=axis,
        recipes=recipes,
        negative=product.negative,
        axes=tuple(node.params["axes"]),
        dtype=node.operands[0].dtype,
    )


def _unwidened(value: Value) -> Value:
    """What is cast to a wider floating type to be added up: of one-hot rows one element alone counts."""
    node = value.node
    if node is None or node.op != "convert_element_type" or len(value.uses) != 1:
        return value
    inner = node.operands[0]
    floats = all(jnp.issubdtype(v.dtype, jnp.floating) for v in (inner, value))
    return inner if floats and inner.dtype.itemsize < value.dtype.itemsize else value


def _recipe(value: Value, shape: tuple[int, ...], axis: int, values: list[Value], depth: int) -> Recipe:
    """How to pick elements of a value along the axis."""
    if value.ndim == 0 or (value.shape[axis] == 1 != shape[axis]):
        values.append(value)
        return ("flat", len(values) - 1)
    node = value.node
    if depth and node is not None and node.op in ("sub", "add") and _has_flat(node, axis):
        return (node.op, *(_recipe(v, shape, axis, values, depth - 1) for v in node.operands))
    values.append(value)
    return ("pick", len(values) - 1)


def _has_flat(node: Node, axis: int) -> bool:
    return any(v.ndim == 0 or v.shape[axis] != node.result.shape[axis] for v in node.operands)


def _picked(
    index: jax.Array,
    *arrays: jax.Array,
    places: Places,
    shape: tuple[int, ...],
    axis: int,
    recipes: tuple[Recipe, ...],
    negative: bool,
    axes: tuple[int, ...],
    dtype: Any,
) -> jax.Array:
    kept = [d for d in range(len(shape)) if d != axis]
    numbers = spread(index, places, shape, kept)
    full = tuple(shape[d] for d in kept)

    def make(recipe: Recipe) -> jax.Array:
        op, *rest = recipe
        if op == "flat":
            array = arrays[rest[0]]
            return jnp.broadcast_to(lax.squeeze(array, (axis,)) if array.ndim else array, full)
        if op == "pick":
            array = arrays[rest[0]]
            wide = tuple(array.shape[axis] if d == axis else n for d, n in enumerate(shape))
            return take_rows(jnp.broadcast_to(array, wide), numbers, axis, len(kept), tuple(kept))
        left, right = map(make, rest)
        return lax.add(left, right) if op == "add" else lax.sub(left, right)

    made = [make(recipe) for recipe in recipes]
    total = math.prod(made[1:], start=made[0]) if made else jnp.ones(full, dtype)
    if not any(recipe[0] == "pick" for recipe in recipes):
        total = lax.select(is_position(numbers, shape[axis]), total, jnp.zeros_like(total))
    total = (lax.neg(total) if negative else total).astype(dtype)
    further = tuple(kept.index(d) for d in axes if d != axis)
    return total.sum(further).astype(dtype) if further else total


RULES: Final[tuple[Rule, ...]] = (sum_with_one_hot,)
