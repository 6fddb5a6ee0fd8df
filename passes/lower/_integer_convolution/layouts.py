"""Integer convolutions with channels last, without groups, and those of one tap as products."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.lower._convolution.depthwise import sum_of_shifts
from lepton_jax.passes.lower._convolution.products import pointwise
from lepton_jax.passes.lower._convolution.window import Window, window_of
from lepton_jax.passes.lower._integer_convolution.common import (
    channels_of,
    convolve,
    integer_rule,
    is_by_rows,
    is_shifted,
    is_taken_apart,
    moved,
    number_of_taps,
)
from lepton_jax.passes.lower._integer_convolution.floats import groups_in_floats
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome


@integer_rule()
def integer_depthwise_as_shifts(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w, feature_group_count=channels) → Σ_t x[shifted by t] · w[t], in float32

    Sums of at most 1024 products of int8 numbers are exact in float32. 10× to 18×
    (`python benchmarks/forms.py --only convolutions`).
    """
    window = window_of(node)
    if not is_shifted(node, window):
        return None
    return rewrite(
        sum_of_shifts, *node.operands, window=window, shape=node.result.shape, dtype=node.result.dtype
    )


@integer_rule()
def channels_last(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) in another layout, such as NCHW → transpose(conv(transpose(x), transpose(w))), NHWC

    XLA's library for CPUs knows integer convolutions in this layout only. 20× to 80×
    (`python benchmarks/forms.py --only convolutions`).
    """
    window = window_of(node)
    return None if is_by_rows(window) else rewrite(with_channels_last, *node.operands, window=window)


def with_channels_last(x: jax.Array, kernel: jax.Array, *, window: Window) -> jax.Array:
    """The convolution, NHWC inside."""
    batch, feature, *space = window.lhs
    out, into, *taps = window.rhs
    grouped = window.groups > 1 and not is_taken_apart(window, kernel.shape[into])
    images, kernels = moved(x, (batch, *space, feature), grouped), moved(kernel, (*taps, into, out), grouped)
    y = convolve(images, kernels, window)
    batch, feature, *space = window.out
    order = (batch, *space, feature)
    return lax.transpose(lax.optimization_barrier(y), [order.index(d) for d in range(4)])


@integer_rule()
def integer_pointwise_as_dot(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) with one tap → dot_general(x, w), strides taken as slices

    For channels last, without groups and padding. The pass `products` then finds the form of the product.
    """
    window = window_of(node)
    if not is_by_rows(window) or window.groups != 1 or number_of_taps(node, window) != 1:
        return None
    if not window.is_unpadded:
        return None
    return rewrite(pointwise, *node.operands, window=window, precision=None, dtype=node.result.dtype)


@integer_rule()
def few_groups_apart(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w, feature_group_count=g) → the convolutions of the groups, concatenated

    For up to four groups of 32 channels and more. 1.6× to 2.3×
    (`python benchmarks/forms.py --only convolutions`).
    """
    window = window_of(node)
    if not is_by_rows(window) or not is_taken_apart(window, channels_of(node, window)):
        return None
    return rewrite(apart, *node.operands, window=window)


def apart(x: jax.Array, kernel: jax.Array, *, window: Window) -> jax.Array:
    """The convolution, one for each group."""
    count = window.groups
    channels, outputs = x.shape[3] // count, kernel.shape[3] // count
    parts = []
    for g in range(count):
        mine = lax.slice_in_dim(x, g * channels, (g + 1) * channels, axis=3)
        part = lax.slice_in_dim(kernel, g * outputs, (g + 1) * outputs, axis=3)
        parts.append(convolve(mine, part, replace(window, groups=1)))
    return lax.concatenate(parts, 3)


RULES: Final[tuple[Rule, ...]] = (
    integer_depthwise_as_shifts,
    groups_in_floats,
    channels_last,
    integer_pointwise_as_dot,
    few_groups_apart,
)
