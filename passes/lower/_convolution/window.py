"""What a convolution does, read from a node: layouts, strides, padding, dilations, groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """The parameters of a `conv_general_dilated`, hashable.

    Attributes:
        lhs: where the input has its batch, features and spatial dimensions, in this order.
        rhs: where the kernel has its output features, input features and spatial dimensions.
        out: where the result has its batch, features and spatial dimensions.
        strides: for each spatial dimension.
        padding: low and high, for each spatial dimension; may be negative.
        holes: the dilation of the input.
        spread: the dilation of the kernel.
        groups: how many groups the features form.
        batch_groups: how many groups the batch forms.
    """

    lhs: Ints
    rhs: Ints
    out: Ints
    strides: Ints
    padding: tuple[tuple[int, int], ...]
    holes: Ints
    spread: Ints
    groups: int
    batch_groups: int

    @property
    def is_plain(self) -> bool:
        """Whether it has neither groups nor dilations."""
        dense = self.groups == self.batch_groups == 1
        return dense and all(d == 1 for d in (*self.holes, *self.spread))

    @property
    def is_unpadded(self) -> bool:
        """Whether nothing is padded or cut off."""
        return not any(any(pair) for pair in self.padding)


def window_of(node: Node) -> Window:
    """The window of a `conv_general_dilated` node."""
    params = node.params
    numbers = params["dimension_numbers"]
    return Window(
        lhs=tuple(numbers.lhs_spec),
        rhs=tuple(numbers.rhs_spec),
        out=tuple(numbers.out_spec),
        strides=tuple(params["window_strides"]),
        padding=tuple((int(low), int(high)) for low, high in params["padding"]),
        holes=tuple(params["lhs_dilation"]),
        spread=tuple(params["rhs_dilation"]),
        groups=params["feature_group_count"],
        batch_groups=params["batch_group_count"],
    )


def taps_of(node: Node, window: Window) -> Ints:
    """The spatial sizes of the kernel."""
    shape = node.operands[1].shape
    return tuple(shape[d] for d in window.rhs[2:])


def is_real(node: Node) -> bool:
    """Whether input, kernel and result are floating-point numbers of 16 bits or more, and none is empty."""
    values = (*node.operands, *node.results)
    if any(math.prod(value.shape) == 0 for value in values):
        return False
    return all(jnp.issubdtype(v.dtype, np.floating) and v.dtype.itemsize > 1 for v in values)


def sum_dtype(dtype: Any) -> Any:
    """The dtype to add up in: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def work_of(node: Node, window: Window) -> int:
    """The floating-point operations of the convolution as it stands."""
    inputs = node.operands[1].shape[window.rhs[1]]
    return int(2 * math.prod(node.result.shape) * inputs * math.prod(taps_of(node, window)))


def padded(x: jax.Array, window: Window) -> jax.Array:
    """The input with its holes and its padding filled with zeros."""
    config = [(0, 0, 0)] * x.ndim
    for d, (low, high), hole in zip(window.lhs[2:], window.padding, window.holes, strict=True):
        config[d] = (low, high, hole - 1)
    if all(entry == (0, 0, 0) for entry in config):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def shifted(x: jax.Array, axes: Ints, starts: Ints, sizes: Ints, strides: Ints) -> jax.Array:
    """A strided part of an array along some axes."""
    start, limit, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
    for d, at, size, stride in zip(axes, starts, sizes, strides, strict=True):
        start[d], limit[d], step[d] = at, at + (size - 1) * stride + 1, stride
    return lax.slice(x, start, limit, step)
