"""Depthwise convolutions as sums of shifted products, and the gradients of their kernels."""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.lower._convolution.window import (
    Ints,
    Window,
    is_real,
    padded,
    shifted,
    sum_dtype,
    taps_of,
    window_of,
)
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

MOST_TAPS: Final = 64
"""Each tap is an operation: larger kernels would make the program large, and slow to compile."""

_MOST_SHARED: Final = 16
"""Channels that read one channel, or that one sums: where they are many, the general convolution is good."""


@movement_rule("conv_general_dilated", level="reassociate", backends=("cpu",))
def depthwise_as_shifts(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w, feature_group_count=channels) → Σ_t x[shifted by t] · w[t]

    Where every output channel reads one input channel, or every input channel goes into one output channel
    of a group (the gradient of a channel multiplier), for up to 64 taps and floating-point numbers; those of
    16 bits are added up in float32. Also one-channel images. XLA's convolution on CPU has no path for these.
    29× on 8×56×56×64 with 3×3 taps (`python benchmarks/rewrites.py --only convolution`).
    """
    window = window_of(node)
    if window.batch_groups != 1 or window.lhs != window.out or not is_real(node):
        return None
    kernel = node.operands[1].shape
    inputs, outputs = kernel[window.rhs[1]], kernel[window.rhs[0]] // window.groups
    if (
        min(inputs, outputs) != 1
        or max(inputs, outputs) > _MOST_SHARED
        or (inputs > 1 and window.groups == 1)
    ):
        return None
    if math.prod(taps_of(node, window)) > MOST_TAPS:
        ctx.miss("depthwise-as-shifts", node, f"the kernel has more than {MOST_TAPS} taps")
        return None
    return rewrite(
        sum_of_shifts, *node.operands, window=window, shape=node.result.shape, dtype=node.result.dtype
    )


def sum_of_shifts(x: jax.Array, kernel: jax.Array, *, window: Window, shape: Ints, dtype: Any) -> jax.Array:
    """The depthwise convolution: a product for each tap.

    Where a group has several channels on one side, the feature axis is split in two:
    groups, and channels within a group.
    """
    feature = window.lhs[1]
    inputs, outputs = kernel.shape[window.rhs[1]], kernel.shape[window.rhs[0]] // window.groups
    wide = sum_dtype(dtype)
    taps = [kernel.shape[d] for d in window.rhs[2:]]
    x = padded(x.astype(wide), window)
    weights = lax.transpose(kernel.astype(wide), (*window.rhs[2:], *window.rhs[:2]))
    splits = inputs * outputs > 1
    if splits:
        x = lax.reshape(x, (*x.shape[:feature], window.groups, inputs, *x.shape[feature + 1 :]))
    weights = weights.reshape(math.prod(taps), window.groups, *((inputs * outputs,) if splits else ()))
    axes = tuple(d + 1 if splits and d > feature else d for d in window.lhs[2:])
    sizes = tuple(shape[d] for d in window.out[2:])
    total = None
    for tap, at in enumerate(itertools.product(*map(range, taps))):
        starts = tuple(place * step for place, step in zip(at, window.spread, strict=True))
        part = shifted(x, axes, starts, sizes, window.strides)
        product = _times(part, lax.index_in_dim(weights, tap, 0, keepdims=False), feature)
        total = product if total is None else lax.add(total, product)
    assert total is not None
    if inputs > 1:
        total = lax.reduce_sum(total, (feature + 1,))
    return lax.reshape(total, shape).astype(dtype)


def _times(part: jax.Array, weight: jax.Array, feature: int) -> jax.Array:
    """A part of the input times the weights of one tap, which lie along the feature axes."""
    axes = tuple(range(feature, feature + weight.ndim))
    shape = list(part.shape)
    shape[feature : feature + weight.ndim] = weight.shape
    return lax.mul(jnp.broadcast_to(part, shape), lax.broadcast_in_dim(weight, shape, axes))


@movement_rule("conv_general_dilated", level="reassociate", backends=("cpu",))
def depthwise_gradient_as_sums(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, dy, batch_group_count=channels) → (Σ x[shifted by t] · dy) for each tap t

    This is what the gradient of a depthwise convolution with respect to its kernel looks like, for up to
    64 taps. About 2× to 5× (`python benchmarks/rewrites.py --only convolution`).
    """
    window = window_of(node)
    groups = window.batch_groups
    if groups == 1 or window.groups != 1 or window.lhs != window.rhs or not is_real(node):
        return None
    x, dy = node.operands
    if x.shape[window.lhs[0]] != groups or dy.shape[window.rhs[0]] > _MOST_SHARED * groups:
        return None
    if math.prod(node.result.shape[d] for d in window.out[2:]) > MOST_TAPS:
        ctx.miss("depthwise-gradient-as-sums", node, f"the kernel has more than {MOST_TAPS} taps")
        return None
    return rewrite(
        sums_of_products, *node.operands, window=window, shape=node.result.shape, dtype=node.result.dtype
    )


def sums_of_products(x: jax.Array, dy: jax.Array, *, window: Window, shape: Ints, dtype: Any) -> jax.Array:
    """The gradient of a depthwise kernel: for each tap a sum over examples and places."""
    channel, spatial = window.lhs[0], window.lhs[2:]
    wide = sum_dtype(dtype)
    x, dy = padded(x.astype(wide), window), dy.astype(wide)
    several = dy.shape[channel] // window.batch_groups
    sizes = tuple(dy.shape[d] for d in spatial)
    if several > 1:
        x = jnp.repeat(x, several, channel)
    taps = [shape[d] for d in window.out[2:]]
    sums = []
    for at in itertools.product(*map(range, taps)):
        starts = tuple(place * step for place, step in zip(at, window.strides, strict=True))
        product = lax.mul(shifted(x, spatial, starts, sizes, window.spread), dy)
        row = lax.expand_dims(lax.reduce_sum(product, (spatial[-1],)), (spatial[-1],))
        sums.append(lax.reduce_sum(row, tuple(d for d in range(x.ndim) if d != channel)))
    found = jnp.stack(sums).reshape(1, *taps, dy.shape[channel])
    order = (window.out[0], *window.out[2:], window.out[1])
    back = tuple(order.index(d) for d in range(len(shape)))
    return lax.transpose(found, back).astype(dtype)


RULES: Final[tuple[Rule, ...]] = (depthwise_as_shifts, depthwise_gradient_as_sums)
