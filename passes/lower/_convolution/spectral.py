"""Convolutions with long kernels as products of Fourier transforms."""

from __future__ import annotations

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
    taps_of,
    window_of,
    work_of,
)
from lepton_jax.passes.simplify._movement.common import changed, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_FEWEST_TAPS: Final = 64
_LEAST_WORK: Final = 2**20
"""Below these the convolution as it stands is as fast."""

_TAPS_PER_CHANNEL: Final = 8
"""A transform pays off over the taps, the products in Fourier space cost over the channels."""

_SHORTEST_BLOCK: Final = 128
_LARGEST: Final = 1e37
"""No sum on the way through Fourier space may become larger."""

_DIRECT_RATES: Final = (5e9, 40e9)
"""Operations a second of a direct convolution: of one channel with one or in groups, and of several."""

_RATES: Final = (6e9, 2.5e9)
"""Operations a second of transforms and products of them: where they fit in the cache, and where not."""

_CACHE: Final = 2**24

_MOST_PAIRS: Final = 1024
"""Pairs of channels in a group."""


@movement_rule("conv_general_dilated", level="reassociate", backends=("cpu",))
def long_kernel_by_fourier(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) → cond(sums stay finite, irfft(rfft(x) · conj(rfft(w))), conv(x, w))

    For float32, one or two spatial dimensions without strides and dilations, 64 taps or more (more where
    there are many channels), where the estimated time is less. Long signals go in blocks of twice the
    kernel's length. The error is that of a Fourier transform: within 8 ε log2(n) ‖x‖ ‖w‖ for transforms
    of n numbers, over all that one place sums (each block by itself), where a sum of the products has
    ε Σ|x||w|. If x or w holds NaN, infinity or numbers so large that a sum could overflow, the
    program itself runs, decided at run time. Under vmap both are computed. 9× for 4,096 numbers and
    256 taps (`python benchmarks/rewrites.py --only convolution`).
    """
    window = window_of(node)
    taps = taps_of(node, window)
    if math.prod(taps) < _FEWEST_TAPS or len(taps) > 2 or window.batch_groups != 1:
        return None
    if any(s != 1 for s in (*window.strides, *window.holes, *window.spread)) or not is_real(node):
        return None
    if any(v.dtype != jnp.float32 for v in (*node.operands, node.result)) or is_inside_choice(node):
        return None
    reason = _why_not(node, window, taps)
    if reason is not None:
        ctx.miss("long-kernel-by-fourier", node, reason)
        return None
    return rewrite(either, *node.operands, window=window, **changed(node))


def is_inside_choice(node: Node) -> bool:
    """Whether the node is in a branch beside one that transforms: this rule has been here."""
    parents = [] if node.graph is None else node.graph.parents
    regions = [region for parent in parents if parent.op == "cond" for region in parent.regions]
    return any(inner.op == "fft" for region in regions for inner in region.walk())


def _why_not(node: Node, window: Window, taps: Ints) -> str | None:
    x, kernel = node.operands
    inputs, outputs = kernel.shape[window.rhs[1]], kernel.shape[window.rhs[0]] // window.groups
    work = work_of(node, window)
    few = math.prod(taps) < _TAPS_PER_CHANNEL * min(inputs, outputs)
    if few or work < _LEAST_WORK or inputs * outputs > _MOST_PAIRS:
        return "there are few taps for so many channels, or little work"
    sizes = [node.result.shape[d] for d in window.out[2:]]
    lengths, blocks = plan(tuple(sizes), taps)
    points = blocks * math.prod(lengths)
    examples = x.shape[window.lhs[0]]
    signals = examples * (inputs + outputs) * window.groups * blocks + inputs * outputs * window.groups
    transforms = signals * math.prod(lengths) * 2.5 * math.log2(math.prod(lengths) + 1)
    products = 4.0 * examples * window.groups * inputs * outputs * points
    direct = work / _DIRECT_RATES[inputs * outputs > 1 and window.groups == 1]
    held = 4 * examples * outputs * window.groups * points
    through = (transforms + products) / _RATES[held > _CACHE]
    if through < 0.8 * direct:
        return None
    return f"takes {through * 1e6:.3g} µs by Fourier transforms, {direct * 1e6:.3g} as it stands"


def good_length(least: int) -> int:
    """The smallest length from `least` on that is a power of two times 1, 3, 5, 9 or 15."""
    found = 1 << max(least - 1, 0).bit_length()
    for odd in (3, 5, 9, 15):
        length = odd
        while length < least:
            length *= 2
        found = min(found, length)
    return found


def plan(sizes: Ints, taps: Ints) -> tuple[Ints, int]:
    """The lengths of the transforms, and into how many blocks a signal of one dimension goes."""
    whole = tuple(good_length(size + tap - 1) for size, tap in zip(sizes, taps, strict=True))
    if len(sizes) > 1:
        return whole, 1
    block = good_length(max(taps[0] - 1, _SHORTEST_BLOCK))
    blocks = -(-sizes[0] // block)
    return (whole, 1) if blocks <= 2 else ((2 * block,), blocks)


def either(
    x: jax.Array, kernel: jax.Array, *, window: Window, primitive: Any, params: tuple[tuple[str, Any], ...]
) -> jax.Array:
    """The convolution, by Fourier transforms if no sum on the way can overflow."""

    def by_fourier(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return through_fourier(x, kernel, window)

    def directly(x: jax.Array, kernel: jax.Array) -> jax.Array:
        result: jax.Array = primitive.bind(x, kernel, **dict(params))
        return result

    # No number on the way is larger than these sums, their product, and it times the length. Sums keep NaN;
    # the maximum need not.
    sum_x, sum_w = jnp.sum(jnp.abs(x)), jnp.sum(jnp.abs(kernel))
    small = jnp.logical_and(sum_x < _LARGEST, sum_w < _LARGEST)
    small = jnp.logical_and(small, sum_x * sum_w < _LARGEST / (4.0 * math.prod(x.shape)))
    result: jax.Array = lax.cond(small, by_fourier, directly, x, kernel)
    return result


def through_fourier(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """The convolution as a product of transforms; the kernel is conjugated, so nothing is reversed."""
    rank = len(window.strides)
    spatial = tuple(range(-rank, 0))
    x = lax.transpose(padded(x, window), window.lhs)
    kernel = lax.transpose(kernel, window.rhs)
    taps = kernel.shape[2:]
    sizes = tuple(length - tap + 1 for length, tap in zip(x.shape[2:], taps, strict=True))
    lengths, blocks = plan(sizes, taps)
    x = x.reshape(x.shape[0], window.groups, 1, -1, *x.shape[2:])
    kernel = kernel.reshape(window.groups, -1, *kernel.shape[1:])
    if blocks > 1:
        x, kernel = _overlapping(x, lengths[0] // 2, blocks), jnp.expand_dims(kernel, -2)
    product = _transform(x, lengths) * lax.conj(_transform(kernel, lengths))
    channels = 3
    product = jnp.sum(product, channels) if product.shape[channels] > 1 else jnp.squeeze(product, channels)
    y = lax.fft(product, lax.FftType.IRFFT, lengths)
    if blocks > 1:
        y = y[..., : lengths[0] // 2].reshape(*y.shape[:-2], -1)
    for d, size in zip(spatial, sizes, strict=True):
        y = lax.slice_in_dim(y, 0, size, axis=y.ndim + d)
    y = y.reshape(y.shape[0], -1, *sizes)
    return lax.transpose(y, [window.out.index(d) for d in range(y.ndim)])


def _transform(x: jax.Array, lengths: Ints) -> jax.Array:
    """The transform of real numbers over the last dimensions, filled with zeros to some lengths."""
    missing = [(0, length - size) for length, size in zip(lengths, x.shape[-len(lengths) :], strict=True)]
    if any(high for _, high in missing):
        x = jnp.pad(x, [(0, 0)] * (x.ndim - len(lengths)) + missing)
    result: jax.Array = lax.fft(x, lax.FftType.RFFT, lengths)
    return result


def _overlapping(x: jax.Array, block: int, blocks: int) -> jax.Array:
    """Windows of two blocks, each beginning a block after the one before."""
    length = (blocks + 1) * block
    x = x[..., :length] if x.shape[-1] > length else x
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])
    x = x.reshape(*x.shape[:-1], blocks + 1, block)
    return jnp.concatenate([x[..., :-1, :], x[..., 1:, :]], -1)


RULES: Final[tuple[Rule, ...]] = (long_kernel_by_fourier,)
