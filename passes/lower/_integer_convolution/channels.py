"""Integer convolutions as others: of blocks of pixels, and as products of patches."""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import is_stored, store
from lepton_jax.ir.graph import Node
from lepton_jax.passes.lower._convolution.window import Ints, Window, padded, shifted, taps_of, window_of
from lepton_jax.passes.lower._integer_convolution.common import (
    channels_of,
    convolve,
    integer_rule,
    is_by_rows,
    may_keep,
    number_of_taps,
)
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome
from lepton_jax.targets.convolution_forms import (
    FILLED_OUTPUTS,
    Form,
    convolution_form,
    has_fast_path,
    is_product_of_small_image,
)
from lepton_jax.targets.forms import PACKED_CHANNELS


@integer_rule()
def stem_by_space_to_depth(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) with stride 2 and few channels → conv of 2×2 blocks as 16 channels

    The first convolution of a network, 7×7 on three channels: its kernel becomes 4×4 on twelve channels, and
    zeros make sixteen of them. 4× to 17× on processors that have dot product instructions for int8, where
    alone it is made (`python benchmarks/forms.py --only convolutions`).
    """
    window = window_of(node)
    if not _is_simple(node, window) or window.spread != (1, 1):
        return None
    if form_of(node, window, dot_products=True) != "blocks":
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
    return _filled_up(x, kernel, window, window_strides=(1, 1), padding=((0, 0), (0, 0)))


def _filled_up(x: jax.Array, kernel: jax.Array, window: Window, **changed: Any) -> jax.Array:
    """The convolution, with outputs of zeros where it has too few for the library; they are cut off."""
    channels, outputs = kernel.shape[2:]
    if has_fast_path(channels, outputs):
        return convolve(x, kernel, window, **changed)
    kernel = lax.pad(
        kernel, jnp.zeros((), kernel.dtype), [*[(0, 0, 0)] * 3, (0, FILLED_OUTPUTS - outputs, 0)]
    )
    return convolve(x, kernel, window, **changed)[..., :outputs]


@integer_rule()
def few_outputs_filled_up(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) with fewer than 32 channels and 24 outputs → with 32 outputs, cut off again

    XLA's library for CPUs has no fast path for so few: 7× on processors that have dot product instructions
    for int8 (`python benchmarks/forms.py --only convolutions`).
    """
    window = window_of(node)
    if not _is_simple(node, window) or form_of(node, window, dot_products=True) != "filled":
        return None
    return rewrite(_filled_up, *node.operands, window=window)


@integer_rule()
def few_channels_as_product(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) with few channels → the taps side by side as channels, times w

    For up to 4 channels, without strides, on processors that have dot product instructions for int8.
    2× to 4× (`python benchmarks/forms.py --only convolutions`).
    """
    return _patches(node, dot_products=True)


@integer_rule()
def small_image_as_product(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) of 128 channels or more to a small image → the taps side by side as channels, times w

    To at most 64 pixels (256 with jax 0.10), on processors with AVX-512 VNNI and no AMX: 1.2×, 1.3× to 2.8×
    with jax 0.10 (`python benchmarks/forms.py --only convolutions`).
    """
    window = window_of(node)
    if not _is_simple(node, window):
        return None
    pixels = math.prod(node.result.shape[d] for d in window.out[2:])
    if not is_product_of_small_image(channels_of(node, window), taps_of(node, window), pixels):
        return None
    return _as_product(node, window)


@integer_rule()
def many_channels_as_product(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) with 256 channels or more → the taps side by side as channels, times w

    On processors without dot product instructions for int8, where the product is nearer to what they can do
    than the convolution (`python benchmarks/forms.py --only convolutions`).
    """
    return _patches(node, dot_products=False)


def _patches(node: Node, *, dot_products: bool) -> Outcome:
    window = window_of(node)
    if not _is_simple(node, window) or form_of(node, window, dot_products=dot_products) != "patches":
        return None
    return _as_product(node, window)


def _as_product(node: Node, window: Window) -> Outcome:
    x, kernel = node.operands
    mark = kernel.node
    alone = mark is not None and is_stored(mark) and len(kernel.uses) == 1 and may_keep(node, window)
    source = mark.operands[0] if mark is not None and alone else kernel
    return rewrite(of_patches, x, source, window=window, sizes=tuple(node.result.shape[1:3]), by_rows=alone)


def of_patches(
    x: jax.Array, kernel: jax.Array, *, window: Window, sizes: Ints, by_rows: bool = False
) -> jax.Array:
    """The convolution as a product of patches; its matrix is kept N×K, if asked."""
    x = padded(x, window)
    parts = []
    for at in itertools.product(*map(range, kernel.shape[:2])):
        starts = tuple(place * step for place, step in zip(at, window.spread, strict=True))
        parts.append(shifted(x, (1, 2), starts, sizes, window.strides))
    patches = lax.concatenate(parts, 3)
    matrix = kernel.reshape(patches.shape[3], kernel.shape[3])
    if by_rows:
        matrix = store(matrix.T)
    numbers = (((3,), (int(by_rows),)), ((), ()))
    return lax.dot_general(patches, matrix, numbers, preferred_element_type=jnp.int32)


def form_of(node: Node, window: Window, *, dot_products: bool) -> Form:
    """The form of a convolution with channels last that the table names."""
    channels, outputs = channels_of(node, window), node.operands[1].shape[window.rhs[0]]
    return convolution_form(
        channels, outputs, taps_of(node, window), window.strides, dot_products=dot_products
    )


def _is_simple(node: Node, window: Window) -> bool:
    return is_by_rows(window) and window.groups == 1 and number_of_taps(node, window) > 1


WITH_DOT_PRODUCTS: Final[tuple[Rule, ...]] = (
    stem_by_space_to_depth,
    few_channels_as_product,
    few_outputs_filled_up,
)
SMALL_IMAGES: Final[tuple[Rule, ...]] = (small_image_as_product,)
WITHOUT: Final[tuple[Rule, ...]] = (many_channels_as_product,)
