"""What the rules on integer convolutions share."""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.cost import size_of
from lepton_jax.ir.graph import Node
from lepton_jax.passes.lower._convolution.depthwise import MOST_TAPS
from lepton_jax.passes.lower._convolution.window import Ints, Window, taps_of, window_of
from lepton_jax.passes.lower._layout import row_major
from lepton_jax.rewrite import node_rule
from lepton_jax.targets.forms import LEAST_WEIGHT

_LEAST_WORK: Final = 2**18
"""Operations below which starting a convolution takes as long as the convolution."""

_FEW_GROUPS: Final = 4
_MANY_CHANNELS: Final = 32
_MOST_SHARED: Final = 16

ROWS: Final = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
"""NHWC, HWIO, NHWC."""


def has_work(node: Node) -> bool:
    """Whether it convolves int8 with int8 in int32, and there is work enough to gain from."""
    x, kernel = node.operands
    if x.dtype != np.int8 or kernel.dtype != np.int8 or node.result.dtype != np.int32:
        return False
    if 0 in (*x.shape, *kernel.shape, *node.result.shape) or node.params["batch_group_count"] != 1:
        return False
    window = window_of(node)
    work = _work_of_one(node, window) * _images(node, window)
    return size_of(kernel.shape) >= LEAST_WEIGHT or work >= _LEAST_WORK


def may_keep(node: Node, window: Window) -> bool:
    """Whether its kernel may be kept in another form: the same for any number of images."""
    return size_of(node.operands[1].shape) >= LEAST_WEIGHT or _work_of_one(node, window) >= _LEAST_WORK


def _images(node: Node, window: Window) -> int:
    """How many images there are; one at least, where their number is a symbol."""
    images = node.operands[0].shape[window.lhs[0]]
    return images if type(images) is int else 1


def _work_of_one(node: Node, window: Window) -> int:
    """The operations for one image; at least so many, where its size is a symbol."""
    shape = [n for i, n in enumerate(node.result.shape) if i != window.out[0] and type(n) is int]
    return 2 * math.prod(shape) * channels_of(node, window) * math.prod(taps_of(node, window))


def is_integer(node: Node) -> bool:
    """Whether it is a convolution of images of int8 without holes, and there is work enough to gain from."""
    if node.operands[0].ndim != 4 or any(hole != 1 for hole in node.params["lhs_dilation"]):
        return False
    return has_work(node)


integer_rule: Final = functools.partial(
    node_rule, "conv_general_dilated", backends=("cpu",), given=is_integer
)


def is_by_rows(window: Window) -> bool:
    """Whether channels are last, as XLA's library for CPUs wants them: NHWC, HWIO, NHWC."""
    return (window.lhs, window.rhs, window.out) == (ROWS.lhs_spec, ROWS.rhs_spec, ROWS.out_spec)


def convolve(x: jax.Array, kernel: jax.Array, window: Window, **changed: Any) -> jax.Array:
    """The convolution of a window with channels last, int32, some of its parameters changed."""
    how: dict[str, Any] = {
        "window_strides": window.strides,
        "padding": window.padding,
        "rhs_dilation": window.spread,
        "feature_group_count": window.groups,
    }
    return lax.conv_general_dilated(
        x, kernel, **{**how, **changed}, dimension_numbers=ROWS, preferred_element_type=jnp.int32
    )


def channels_of(node: Node, window: Window) -> int:
    """How many channels each result is summed over."""
    return int(node.operands[1].shape[window.rhs[1]])


def number_of_taps(node: Node, window: Window) -> int:
    """How many places of an image each result is summed over."""
    return math.prod(taps_of(node, window))


def moved(x: jax.Array, order: Ints, grouped: bool = False) -> jax.Array:
    """An array with its dimensions in another order, in memory too.

    Args:
        grouped: whether a convolution with groups reads it. XLA, of JAX 0.10 and 0.12, makes wrong numbers
            or no program at all of one that reads what a call gives: a barrier stands there instead.
    """
    y: jax.Array = lax.transpose(x, order)
    z: jax.Array = lax.optimization_barrier(y) if grouped else row_major(y)
    return z


def is_taken_apart(window: Window, channels: int) -> bool:
    """Whether there are few groups of many channels each, which are convolved one by one."""
    return 1 < window.groups <= _FEW_GROUPS and channels >= _MANY_CHANNELS


def is_shifted(node: Node, window: Window) -> bool:
    """Whether it is depthwise, or nearly, so that it is the sum of its taps' shifted images."""
    channels, outputs = channels_of(node, window), node.operands[1].shape[window.rhs[0]] // window.groups
    if window.groups == 1 or window.lhs != window.out or channels * outputs > _MOST_SHARED:
        return False
    return min(channels, outputs) == 1 and number_of_taps(node, window) <= MOST_TAPS
