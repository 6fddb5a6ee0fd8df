"""Integer convolutions of images with few channels, which XLA's library for CPUs has no fast path for."""

from __future__ import annotations

import itertools
from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.lower._convolution.window import Ints, Window, padded, shifted, taps_of, window_of
from lepton_jax.passes.lower._integer_convolution.common import (
    channels_of,
    convolve,
    integer_rule,
    is_by_rows,
    number_of_taps,
)
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome
from lepton_jax.targets.forms import FEW_CHANNELS, MOST_PATCH, PACKED_CHANNELS

_LARGE_KERNEL: Final = 5


@integer_rule()
def stem_by_space_to_depth(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) with stride 2, a large kernel and few channels → conv of 2×2 blocks as 16 channels

    The first convolution of a network, 7×7 on three channels: its kernel becomes 4×4 on twelve channels, and
    zeros make sixteen of them. 1.2× (`python benchmarks/forms.py --only convolutions`); 13× where
    the processor has dot product instructions for int8.
    """
    window = window_of(node)
    if not _is_simple(node, window) or channels_of(node, window) * 4 > PACKED_CHANNELS:
        return None
    if window.strides != (2, 2) or window.spread != (1, 1) or min(taps_of(node, window)) < _LARGE_KERNEL:
        return None
    return rewrite(of_blocks, *node.operands, window=window, sizes=tuple(node.result.shape[1:3]))


def of_blocks(x: jax.Array, kernel: jax.Array, *, window: Window, sizes: Ints) -> jax.Array:
    """The convolution with stride 2 as one with stride 1 of blocks of 2×2 pixels."""
    channels, outputs = kernel.shape[2:]
    taps = [-(-t // 2) for t in kernel.shape[:2]]
    zero = jnp.zeros((), x.dtype)
    config = [(0, 0, 0), *[(0, 0, 0)] * 2, (0, 0, 0)]
    for i, (low, _) in enumerate(window.padding):
        wanted = 2 * (sizes[i] - 1 + taps[i])
        config[i + 1] = (low, wanted - x.shape[i + 1] - low, 0)
    x = lax.pad(x, zero, config)
    x = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, channels)
    x = lax.transpose(x, (0, 1, 3, 2, 4, 5))
    x = x.reshape(*x.shape[:3], 4 * channels)
    grown = [(0, 2 * taps[i] - kernel.shape[i], 0) for i in range(2)]
    kernel = lax.pad(kernel, zero, [*grown, (0, 0, 0), (0, 0, 0)])
    kernel = kernel.reshape(taps[0], 2, taps[1], 2, channels, outputs)
    kernel = lax.transpose(kernel, (0, 2, 1, 3, 4, 5)).reshape(*taps, 4 * channels, outputs)
    more = PACKED_CHANNELS - 4 * channels
    x = lax.pad(x, zero, [(0, 0, 0)] * 3 + [(0, more, 0)])
    kernel = lax.pad(kernel, zero, [(0, 0, 0)] * 2 + [(0, more, 0), (0, 0, 0)])
    return convolve(x, kernel, window, window_strides=(1, 1), padding=((0, 0), (0, 0)))


@integer_rule()
def few_channels_as_product(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) with few channels → the taps side by side as channels, times w

    For up to 16 channels, or 4 with strides. 1.1× to 3×
    (`python benchmarks/forms.py --only convolutions`).
    """
    window = window_of(node)
    channels, taps = channels_of(node, window), number_of_taps(node, window)
    if not _is_simple(node, window) or channels > FEW_CHANNELS or channels * taps > MOST_PATCH:
        return None
    if channels <= 4 and window.strides != (1, 1):
        return None
    return rewrite(of_patches, *node.operands, window=window, sizes=tuple(node.result.shape[1:3]))


def of_patches(x: jax.Array, kernel: jax.Array, *, window: Window, sizes: Ints) -> jax.Array:
    """The convolution as a product of patches."""
    x = padded(x, window)
    parts = []
    for at in itertools.product(*map(range, kernel.shape[:2])):
        starts = tuple(place * step for place, step in zip(at, window.spread, strict=True))
        parts.append(shifted(x, (1, 2), starts, sizes, window.strides))
    patches = lax.concatenate(parts, 3)
    matrix = kernel.reshape(patches.shape[3], kernel.shape[3])
    return lax.dot_general(patches, matrix, (((3,), (0,)), ((), ())), preferred_element_type=jnp.int32)


def _is_simple(node: Node, window: Window) -> bool:
    return is_by_rows(window) and window.groups == 1 and number_of_taps(node, window) > 1


RULES: Final[tuple[Rule, ...]] = (stem_by_space_to_depth, few_channels_as_product)
