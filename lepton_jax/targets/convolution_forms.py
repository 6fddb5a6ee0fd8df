"""Which form of an integer convolution is fast on which processor, as measured.

The figures behind the table are printed by `python benchmarks/forms.py --only convolutions`.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import jax

from lepton_jax.targets import processor
from lepton_jax.targets.forms import FEW_CHANNELS, MOST_PATCH, PACKED_CHANNELS

Form = Literal["direct", "filled", "patches", "blocks", "floats"]
"""`direct`: a convolution of int8 with channels last; `filled`: the same with outputs of zeros, which are cut
off again; `patches`: the taps side by side as channels, then a
product; `blocks`: of blocks of 2×2 pixels; `floats`: of the codes in float32, where their sums are exact."""

EXACT_PRODUCTS: Final = 2**24 // 2**14
"""So many products of int8 numbers at most have a sum that is exact in float32."""

MANY_CHANNELS: Final = 256
"""Channels from which a product of patches is faster than a convolution, without dot products of int8."""

SMALL_IMAGE: Final = 64 if jax.__version_info__ >= (0, 11) else 256
"""Pixels of a result up to which a product of patches is faster, with AVX-512 VNNI and no AMX."""

FILLED_OUTPUTS: Final = 32
"""Outputs to which a convolution with few channels is filled up."""

_LIBRARY_CHANNELS: Final = 32
_LIBRARY_OUTPUTS: Final = 24
_BLOCK_TAPS: Final = 3
_PATCH_CHANNELS: Final = 4
_SMALL_IMAGE_CHANNELS: Final = 128
_MOST_TAPS: Final = 64
_DOT_PRODUCTS: Final = ("avx512_vnni", "avx_vnni", "amx_int8")


def has_dot_products() -> bool:
    """Whether the processor has instructions for dot products of int8; True where nothing is known of it.

    Those with AVX2 alone multiply int8 hardly faster than float32.
    """
    return not processor.has("avx2") or any(processor.has(each) for each in _DOT_PRODUCTS)


def has_fast_path(channels: int, outputs: int) -> bool:
    """Whether XLA's library for CPUs has a fast int8 convolution of so many channels and outputs.

    With fewer of both it takes four to eight times as long as with 32 outputs.
    """
    return channels >= _LIBRARY_CHANNELS or outputs >= _LIBRARY_OUTPUTS


def is_product_of_small_image(channels: int, taps: tuple[int, ...], pixels: int) -> bool:
    """Whether an int8 convolution is faster as a product of patches, with AVX-512 VNNI and no AMX.

    Args:
        channels: that each result is summed over.
        taps: the spatial sizes of the kernel.
        pixels: of one image of the result.

    Example:
        >>> is_product_of_small_image(512, (3, 3), 49), is_product_of_small_image(64, (3, 3), 49)
        (True, False)
    """
    return channels >= _SMALL_IMAGE_CHANNELS and pixels <= SMALL_IMAGE and math.prod(taps) <= _MOST_TAPS


def convolution_form(
    channels: int, outputs: int, taps: tuple[int, ...], strides: tuple[int, ...], *, dot_products: bool
) -> Form:
    """The fastest form of an int8 convolution of images on a CPU, channels last and without groups.

    Args:
        channels: that each result is summed over.
        outputs: channels of the result.
        taps: the spatial sizes of the kernel.
        strides: for each spatial dimension.
        dot_products: whether the processor has instructions for them.

    Example:
        >>> convolution_form(3, 64, (7, 7), (2, 2), dot_products=True)
        'blocks'
        >>> convolution_form(16, 16, (3, 3), (1, 1), dot_products=True)
        'filled'
        >>> convolution_form(3, 64, (7, 7), (2, 2), dot_products=False)
        'floats'
        >>> convolution_form(512, 512, (3, 3), (1, 1), dot_products=False)
        'patches'
    """
    products = channels * math.prod(taps)
    if not dot_products:
        if channels <= FEW_CHANNELS and products <= EXACT_PRODUCTS:
            return "floats"
        return "patches" if channels >= MANY_CHANNELS and math.prod(taps) <= _MOST_TAPS else "direct"
    strided = any(step != 1 for step in strides)
    if tuple(strides) == (2, 2) and min(taps) >= _BLOCK_TAPS and channels * 4 <= PACKED_CHANNELS:
        return "blocks"
    if channels <= _PATCH_CHANNELS and products <= MOST_PATCH and not strided:
        return "patches"
    return "direct" if has_fast_path(channels, outputs) else "filled"
