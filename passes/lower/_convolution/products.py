"""Convolutions that are matrix products: kernels of one tap, and kernels as large as the input."""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.cost import size_of
from lepton_jax.ir.graph import Node
from lepton_jax.passes.lower._convolution.window import Ints, Window, is_real, taps_of, window_of, work_of
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_LEAST_WORK: Final = 2**18
"""Floating-point operations below which starting the product takes as long as the convolution."""

_LEAST_KERNEL: Final = 2**9
"""Elements of a kernel from which one is made in any case."""

_MANY_PLACES: Final = 196
"""Places from which products with the channels in front are made example by example."""


@movement_rule("conv_general_dilated", level="reassociate", backends=("cpu",))
def pointwise_as_dot(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) with one tap → dot_general(x, w), strides taken as slices, padding and holes as a pad

    For floating-point numbers and one group. 1.2× to 2× (`python benchmarks/rewrites.py --only convolution`).
    """
    window = window_of(node)
    if window.groups != 1 or window.batch_groups != 1 or any(t != 1 for t in taps_of(node, window)):
        return None
    if not is_real(node) or not _has_work(node, window):
        return None
    kept = window.is_unpadded and all(h == 1 for h in window.holes)
    if not kept and any(s != 1 for s in window.strides):
        return None
    return rewrite(pointwise, *node.operands, window=window, **_how(node))


def pointwise(x: jax.Array, kernel: jax.Array, *, window: Window, precision: Any, dtype: Any) -> jax.Array:
    """The convolution with one tap as a product."""
    batch, feature, *spatial = window.lhs
    if any(s != 1 for s in window.strides):
        step = [1] * x.ndim
        for d, stride in zip(spatial, window.strides, strict=True):
            step[d] = stride
        x = lax.slice(x, [0] * x.ndim, x.shape, step)
    weights = lax.squeeze(kernel, window.rhs[2:])
    read = int(window.rhs[1] > window.rhs[0])
    places = math.prod(x.shape[d] for d in spatial)
    y: jax.Array
    numbers: Any
    if batch == 0 and feature == 1 and x.shape[0] == 1:
        numbers = (((read,), (0,)), ((), ()))
        y = lax.dot_general(
            weights, lax.squeeze(x, (0,)), numbers, precision=_turned(precision), preferred_element_type=dtype
        )
        y = lax.expand_dims(y, (0,))
        order = (0, 1, *spatial)
    elif batch == 0 and feature == 1 and places >= _MANY_PLACES:
        weights = lax.broadcast_in_dim(weights, (x.shape[0], *weights.shape), (1, 2))
        numbers = (((read + 1,), (1,)), ((0,), (0,)))
        y = lax.dot_general(weights, x, numbers, precision=_turned(precision), preferred_element_type=dtype)
        order = (0, 1, *spatial)
    else:
        numbers = (((feature,), (read,)), ((), ()))
        y = lax.dot_general(x, weights, numbers, precision=precision, preferred_element_type=dtype)
        order = (*(d for d in range(x.ndim) if d != feature), feature)
    # `order` says which dimension of x each of y stands for.
    meant = {d: window.out[window.lhs.index(d)] for d in range(x.ndim)}
    places_of = [meant[d] for d in order]
    y = lax.transpose(y, [places_of.index(d) for d in range(x.ndim)])
    config = [(0, 0, 0)] * y.ndim
    for d, (low, high), hole in zip(window.out[2:], window.padding, window.holes, strict=True):
        config[d] = (low, high, hole - 1)
    return y if not any(map(any, config)) else lax.pad(y, jnp.zeros((), y.dtype), config)


def _turned(precision: Any) -> Any:
    return precision[::-1] if isinstance(precision, tuple) else precision


@movement_rule("conv_general_dilated", level="reassociate", backends=("cpu",))
def whole_window_as_dot(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, w) with a kernel that covers all of x, so that one place results → dot_general over it

    This is what the gradient of a pointwise convolution with respect to its kernel looks like. Parts
    may be cut off by negative padding; no groups. 2× to 5×
    (`python benchmarks/rewrites.py --only convolution`).
    """
    window = window_of(node)
    if window.groups != 1 or window.batch_groups != 1 or any(max(pair) > 0 for pair in window.padding):
        return None
    if any(node.result.shape[d] != 1 for d in window.out[2:]) or any(h != 1 for h in window.holes):
        return None
    taps = taps_of(node, window)
    if all(t == 1 for t in taps) or not is_real(node) or not _has_work(node, window):
        return None
    return rewrite(whole, *node.operands, window=window, taps=taps, **_how(node))


def whole(
    x: jax.Array, kernel: jax.Array, *, window: Window, taps: Ints, precision: Any, dtype: Any
) -> jax.Array:
    """The convolution with one place in its result as a product."""
    start, limit, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
    for i, d in enumerate(window.lhs[2:]):
        start[d], step[d] = -window.padding[i][0], window.spread[i]
        limit[d] = start[d] + (taps[i] - 1) * step[d] + 1
    x = lax.slice(x, start, limit, step)
    numbers = ((window.lhs[1:], window.rhs[1:]), ((), ()))
    y = lax.dot_general(x, kernel, numbers, precision=precision, preferred_element_type=dtype)
    if window.out[0] > window.out[1]:
        y = lax.transpose(y, (1, 0))
    return lax.expand_dims(y, window.out[2:])


def _has_work(node: Node, window: Window) -> bool:
    """Whether there is work enough, said alike for any number of images: the kernel may be prepared."""
    images = node.operands[0].shape[window.lhs[0]]
    return size_of(node.operands[1].shape) >= _LEAST_KERNEL or work_of(node, window) >= _LEAST_WORK * images


def _how(node: Node) -> dict[str, Any]:
    return {"precision": node.params["precision"], "dtype": node.params["preferred_element_type"]}


RULES: Final[tuple[Rule, ...]] = (pointwise_as_dot, whole_window_as_dot)
