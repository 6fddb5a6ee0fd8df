"""Where floats become codes: round(x · ratio), clamped, as integers of eight bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import inline_call, is_plain_call

_SMALL: Final = 4
_STEPS: Final = 4
"""From the product with the ratio to the codes: round, max, min, convert."""
_PARTS: Final = frozenset({"round", "max", "min", "select_n", "convert_element_type", "broadcast_in_dim"})
_UNCHANGED: Final = frozenset({"name", "broadcast_in_dim", "convert_element_type", "reshape"})


@dataclass(frozen=True)
class Encoding:
    """An array in codes.

    Attributes:
        x: the floats.
        ratio: one over their scale, a scalar.
        low: the least code.
        high: the greatest.
        product: the node that multiplies x by the ratio.
    """

    x: Value
    ratio: Value
    low: float
    high: float
    product: Node


def encoding_of(node: Node) -> Encoding | None:
    """What a conversion to int8 is the last step of, if it is of quantisation by one scale."""
    if node.op != "convert_element_type" or node.result.dtype != np.int8:
        return None
    top, high = _limit(node.operands[0], "min")
    middle, low = _limit(top, "max")
    rounded = None if middle is None else middle.node
    if rounded is None or rounded.op != "round" or int(rounded.params["rounding_method"]) != 1:
        return None
    product = rounded.operands[0].node
    if product is None or product.op != "mul" or product.result.dtype != np.float32:
        return None
    for x, factor in (product.operands, product.operands[::-1]):
        ratio = scalar_of(factor)
        if ratio is not None and x.shape == product.result.shape and x.ndim:
            return Encoding(x, ratio, low, high, product)
    return None


def _limit(value: Value | None, op: str) -> tuple[Value | None, float]:
    """What is kept to one side of a number, and the number."""
    if value is None or value.op != op:
        return None, 0.0
    assert value.node is not None
    for inner, limit in (value.node.operands, value.node.operands[::-1]):
        if (number := number_of(limit)) is not None:
            return inner, number
    return None, 0.0


def number_of(value: Value) -> float | None:
    """The number that all elements are, if that is known."""
    splat = facts_of(value).splat
    return None if splat is None else float(splat)


def scalar_of(value: Value) -> Value | None:
    """The one number that an array is made of, as a scalar."""
    while value.op in ("broadcast_in_dim", "reshape") and value.ndim:
        assert value.node is not None
        value = value.node.operands[0]
    return value if value.ndim == 0 else None


def same_number(a: Value, b: Value) -> bool:
    """Whether two scalars are computed in the same way, of the same values."""
    if a is b:
        return True
    if a.is_const and b.is_const:
        return a.aval == b.aval and number_of(a) is not None and number_of(a) == number_of(b)
    left, right = a.node, b.node
    if left is None or right is None or (left.op, a.index) != (right.op, b.index) or left.regions:
        return False
    if left.params != right.params or left.effects or len(left.operands) != len(right.operands):
        return False
    pairs = zip(left.operands, right.operands, strict=True)
    return all(same_number(x, y) if x.ndim == 0 else x is y for x, y in pairs)


def is_encoded(product: Node, x: Value, like: Encoding | None = None) -> bool:
    """Whether a node is the first step of making codes of x; under the same scale as others, if given."""
    node = product
    for _ in range(_STEPS):
        if len(node.results) != 1 or len(node.result.uses) != 1:
            return False
        (node,) = node.result.users()
    found = encoding_of(node)
    if found is None or found.x is not x or found.product is not product:
        return False
    if like is None:
        return True
    return (found.low, found.high) == (like.low, like.high) and same_number(found.ratio, like.ratio)


def never_negative(value: Value) -> bool:
    """Whether an array is NaN or at least zero, as scales are."""
    if facts_of(value).nonnegative:
        return True
    if (number := number_of(value)) is not None:
        return math.isnan(number) or number >= 0
    node = value.node
    if node is None:
        return False
    if node.op in _UNCHANGED:
        return never_negative(node.operands[0])
    if node.op == "select_n":
        return all(never_negative(each) for each in node.operands[1:])
    return node.op in ("div", "mul") and all(never_negative(each) for each in node.operands)


def relu_of(value: Value) -> Value | None:
    """What an array is the positive part of."""
    node = value.node
    if node is None:
        return None
    if node.op == "max":
        for inner, other in (node.operands, node.operands[::-1]):
            if number_of(other) == 0 and inner.shape == value.shape:
                return inner
    if node.op == "custom_jvp_call" and len(node.operands) == 1:
        inside = [each for region in node.regions for each in region.walk()]
        arithmetic = [each for each in inside if not is_plain_call(each)]
        if len(arithmetic) == 1 and arithmetic[0].op == "max":
            zero = any(number_of(each) == 0 for each in arithmetic[0].operands)
            return node.operands[0] if zero else None
    return None


def encoded(x: jax.Array, ratio: jax.Array, *, low: float, high: float) -> jax.Array:
    """Codes of an array: int8."""
    rounded = lax.round(lax.mul(x, jnp.broadcast_to(ratio, x.shape)), lax.RoundingMethod.TO_NEAREST_EVEN)
    lower, upper = (jnp.full(x.shape, limit, x.dtype) for limit in (low, high))
    return lax.convert_element_type(lax.min(lax.max(rounded, lower), upper), jnp.int8)


def has_codes(graph: Graph) -> bool:
    """Whether floats become int8 anywhere in a program."""
    return any(
        node.op == "convert_element_type"
        and node.result.dtype == np.int8
        and jnp.issubdtype(node.operands[0].dtype, np.floating)
        for node in graph.walk()
    )


def open_small_calls(graph: Graph) -> None:
    """Write the calls that `jnp.round`, `jnp.clip` and `jnp.where` are into their callers."""
    for node in list(graph.walk()):
        if node.alive and is_plain_call(node) and _is_small(node.regions[0]):
            inline_call(node)


def _is_small(region: Graph) -> bool:
    nodes = list(region)
    return 0 < len(nodes) <= _SMALL and all(node.op in _PARTS for node in nodes)


def window_of_maximum(node: Node | None) -> dict[str, Any] | None:
    """The parameters of a maximum over windows, none of which lies in the padding altogether."""
    if node is None or node.op != "reduce_window_max":
        return None
    params = {name: tuple(node.params[name]) for name in _WINDOW}
    if any(step != 1 for step in params["base_dilation"]):
        return None
    spans = [
        (n - 1) * d + 1 for n, d in zip(params["window_dimensions"], params["window_dilation"], strict=True)
    ]
    sizes = node.operands[0].shape
    for (low, high), span, size, apart in zip(
        params["padding"], spans, sizes, params["window_dilation"], strict=True
    ):
        if max(low, high) >= span or min(low, high) < 0 or size == 0:
            return None
        if apart > 1 and max(low, high):
            return None
    params["padding"] = tuple((int(low), int(high)) for low, high in params["padding"])
    return params


_WINDOW: Final = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
