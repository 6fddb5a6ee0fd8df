"""Integer convolutions in float32, exact, where no form of integers is faster; and those of rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.lower._convolution.window import Ints, Window, taps_of, window_of
from lepton_jax.passes.lower._integer_convolution.channels import form_of
from lepton_jax.passes.lower._integer_convolution.common import (
    channels_of,
    has_work,
    integer_rule,
    is_by_rows,
    is_taken_apart,
    number_of_taps,
)
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome
from lepton_jax.targets.convolution_forms import EXACT_PRODUCTS

_MOST_PARTS: Final = 16


def _is_unusual(node: Node) -> bool:
    """Whether it is an integer convolution that XLA has no fast path for: holes in the image, or volumes."""
    if not has_work(node):
        return False
    return node.operands[0].ndim != 4 or any(hole != 1 for hole in node.params["lhs_dilation"])


@node_rule("conv_general_dilated", backends=("cpu",), given=_is_unusual)
def rows_as_images(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) in one dimension → that of images one pixel high

    17× (`python benchmarks/forms.py --only convolutions`).
    """
    if node.operands[0].ndim != 3:
        return None
    window = window_of(node)
    return rewrite(as_images, *node.operands, window=window)


def as_images(x: jax.Array, kernel: jax.Array, *, window: Window) -> jax.Array:
    """The convolution of images one pixel high; the new dimension stands before the spatial one."""
    at, where, out = window.lhs[2], window.rhs[2], window.out[2]
    images, kernels = lax.expand_dims(x, (at,)), lax.expand_dims(kernel, (where,))
    wide = replace(
        window,
        lhs=_widened(window.lhs, at),
        rhs=_widened(window.rhs, where),
        out=_widened(window.out, out),
        strides=(1, *window.strides),
        padding=((0, 0), *window.padding),
        holes=(1, *window.holes),
        spread=(1, *window.spread),
    )
    return lax.squeeze(_convolved(images, kernels, wide, jnp.int32), (out,))


def _widened(spec: Ints, at: int) -> Ints:
    """Where dimensions are, with a first spatial one put in at the place of the only one."""
    moved = [d + (d >= at) for d in spec]
    return (moved[0], moved[1], at, moved[2])


@node_rule("conv_general_dilated", backends=("cpu",), given=_is_unusual)
def unusual_in_floats(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) of volumes or with holes in the image → Σ conv(x, w) of some channels each, in float32

    So many channels that their sums are exact. 8× to 15×
    (`python benchmarks/forms.py --only convolutions`).
    """
    if node.operands[0].ndim == 3:
        return None
    return _in_floats(node, window_of(node))


@integer_rule()
def few_channels_in_floats(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) with few channels → that of the codes in float32, whose sums are exact

    On processors without dot product instructions for int8, where no form of integers is faster than float32
    (`python benchmarks/forms.py --only convolutions`).
    """
    window = window_of(node)
    if not is_by_rows(window) or window.groups != 1 or number_of_taps(node, window) == 1:
        return None
    return _in_floats(node, window) if form_of(node, window, dot_products=False) == "floats" else None


@integer_rule()
def groups_in_floats(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) with many groups, or groups of few channels → that of the codes in float32, if exact

    XLA's library for CPUs has no fast path for them: the integer convolution takes 4 times as long and more
    (`python benchmarks/forms.py --only convolutions`).
    """
    window = window_of(node)
    if window.groups == 1 or is_taken_apart(window, channels_of(node, window)):
        return None
    return _in_floats(node, window)


def _in_floats(node: Node, window: Window) -> Outcome:
    met = [
        -(-taps // hole) if spread == 1 else taps
        for taps, hole, spread in zip(taps_of(node, window), window.holes, window.spread, strict=True)
    ]
    channels = channels_of(node, window)
    at_once = EXACT_PRODUCTS // math.prod(met)
    parts = -(-channels // max(at_once, 1))
    if at_once == 0 or parts > _MOST_PARTS or (parts > 1 and window.groups != 1):
        return None
    return rewrite(in_floats, *node.operands, window=window, at_once=min(at_once, channels))


def in_floats(x: jax.Array, kernel: jax.Array, *, window: Window, at_once: int) -> jax.Array:
    """The convolution in float32, `at_once` channels at a time."""
    feature, into = window.lhs[1], window.rhs[1]
    channels = kernel.shape[into]
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    if at_once == channels:
        return _convolved(x, kernel, window, jnp.float32).astype(jnp.int32)
    total: Any = 0
    for start in range(0, channels, at_once):
        end = min(start + at_once, channels)
        images = lax.slice_in_dim(x, start, end, axis=feature)
        filters = lax.slice_in_dim(kernel, start, end, axis=into)
        total += _convolved(images, filters, window, jnp.float32).astype(jnp.int32)
    found: jax.Array = total
    return found


def _convolved(x: jax.Array, kernel: jax.Array, window: Window, dtype: Any) -> jax.Array:
    """The convolution as it stands, with results of some dtype."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        lhs_dilation=window.holes,
        rhs_dilation=window.spread,
        dimension_numbers=lax.ConvDimensionNumbers(window.lhs, window.rhs, window.out),
        feature_group_count=window.groups,
        precision=lax.Precision.HIGHEST if dtype == np.float32 else None,
        preferred_element_type=dtype,
    )


RULES: Final[tuple[Rule, ...]] = (rows_as_images, unusual_in_floats)
WITHOUT_DOT_PRODUCTS: Final[tuple[Rule, ...]] = (few_channels_in_floats,)
