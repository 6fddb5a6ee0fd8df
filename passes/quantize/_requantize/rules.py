"""The rules of the pass `requantize`."""

from __future__ import annotations

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.quantize._requantize.encodings import (
    encoded,
    encoding_of,
    is_encoded,
    never_negative,
    number_of,
    relu_of,
    scalar_of,
    window_of_maximum,
)
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_MOST_SUMMED: Final = 2**31 // 128
"""Codes whose sum is certain to be an int32."""

_MOST_FACTORS: Final = 4
"""Products between a function and its codes: with what it gates, a half, the ratio."""


def _to_codes(node: Node) -> bool:
    return bool(node.result.dtype == np.int8 and node.operands[0].dtype == np.float32)


encoding_rule: Final = functools.partial(node_rule, "convert_element_type", given=_to_codes)


@encoding_rule()
def relu_in_clamp(node: Node, ctx: PassContext) -> Outcome:
    """codes(max(x, 0)), clamped to −127 … 127 → codes(x), clamped to 0 … 127

    Where nothing else reads the maximum, and the scale is known to be positive. The same codes.
    """
    found = encoding_of(node)
    if found is None or found.low >= 0 or len(found.x.uses) != 1:
        return None
    x = relu_of(found.x)
    if x is None or not never_negative(found.ratio):
        return None
    return rewrite(encoded, x, found.ratio, low=0.0, high=found.high)


@encoding_rule()
def maximum_of_codes(node: Node, ctx: PassContext) -> Outcome:
    """codes(the maximum over windows of x) → the maximum over windows of codes(x)

    Rounding keeps the order of numbers, so the codes are the same; not so where there are NaN, which codes
    do not have. Where nothing else reads the maximum.
    """
    found = encoding_of(node)
    if found is None or len(found.x.uses) != 1:
        return None
    params = window_of_maximum(found.x.node)
    if params is None or not never_negative(found.ratio):
        return None
    assert found.x.node is not None
    x = found.x.node.operands[0]
    how = tuple(params.items())
    return rewrite(maximum, x, found.ratio, low=found.low, high=found.high, how=how)


def maximum(x: jax.Array, ratio: jax.Array, *, low: float, high: float, how: Any) -> jax.Array:
    """The maximum over windows of the codes of an array."""
    codes, params = encoded(x, ratio, low=low, high=high), dict(how)
    found: jax.Array = lax.reduce_window(codes, np.int8(-128), lax.max, **params)
    return found


@encoding_rule()
def part_of_codes(node: Node, ctx: PassContext) -> Outcome:
    """codes(a part of x), where codes(x) under the same scale are there too → that part of codes(x)"""
    found = encoding_of(node)
    inner = None if found is None else found.x.node
    if found is None or inner is None or inner.op != "slice":
        return None
    x = inner.operands[0]
    if not any(is_encoded(user, x, found) for user in x.users()):
        return None
    params = {name: inner.params[name] for name in ("start_indices", "limit_indices", "strides")}
    return rewrite(part, x, found.ratio, low=found.low, high=found.high, how=tuple(params.items()))


def part(x: jax.Array, ratio: jax.Array, *, low: float, high: float, how: Any) -> jax.Array:
    """A part of the codes of an array."""
    return lax.slice(encoded(x, ratio, low=low, high=high), **dict(how))


@node_rule("reduce_sum", level="reassociate")
def sum_of_codes(node: Node, ctx: PassContext) -> Outcome:
    """Σ (code · scale) → (Σ code) · scale, the sum of integers, which is exact

    An average over pixels, of activations that are there as codes.
    """
    product = node.operands[0].node
    if product is None or product.op != "mul" or node.result.dtype != np.float32:
        return None
    for value, factor in (product.operands, product.operands[::-1]):
        scale, inner = scalar_of(factor), value.node
        if scale is None or inner is None or inner.op != "convert_element_type":
            continue
        codes = inner.operands[0]
        count = np.prod([codes.shape[axis] for axis in node.params["axes"]], dtype=np.int64)
        if codes.dtype == np.int8 and codes.shape == node.operands[0].shape and count <= _MOST_SUMMED:
            return rewrite(summed, codes, scale, axes=tuple(node.params["axes"]))
    return None


def summed(codes: jax.Array, scale: jax.Array, *, axes: tuple[int, ...]) -> jax.Array:
    """The sum of codes times their scale."""
    return jnp.sum(codes, axes, dtype=jnp.int32).astype(scale.dtype) * scale


@node_rule("add", level="reassociate", backends=("cpu",))
def logistic_before_codes(node: Node, ctx: PassContext) -> Outcome:
    """codes((1 + tanh(x)) · y) → codes(2 · logistic(2 x) · y): gelu, and sigmoid written with tanh

    In one loop with narrow results XLA for CPUs takes 1.6 times as long for tanh as for the logistic
    function (`python benchmarks/forms.py --only gelu`).
    """
    for one, value in (node.operands, node.operands[::-1]):
        if value.op == "tanh" and number_of(one) == 1 and value.dtype == np.float32 and _becomes_codes(node):
            assert value.node is not None
            return rewrite(_one_and_tanh, value.node.operands[0])
    return None


def _becomes_codes(node: Node) -> bool:
    """Whether nothing but codes is made of a result, behind at most a few products."""
    for _ in range(_MOST_FACTORS):
        if len(node.results) != 1 or len(node.result.uses) != 1:
            return False
        value = node.result
        (node,) = value.users()
        if node.op != "mul":
            return False
        if is_encoded(node, value):
            return True
    return False


def _one_and_tanh(x: jax.Array) -> jax.Array:
    return 2 * lax.logistic(2 * x)


RULES: Final[tuple[Rule, ...]] = (
    logistic_before_codes,
    maximum_of_codes,
    relu_in_clamp,
    part_of_codes,
    sum_of_codes,
)
