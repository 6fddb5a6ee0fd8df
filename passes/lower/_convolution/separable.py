"""Convolutions with constant kernels that are outer products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir import _jax
from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.lower._convolution.window import Window, is_real, taps_of, window_of
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

Array = np.ndarray[Any, Any]

_LARGEST: Final = 2**16
"""Numbers in a kernel that is looked at."""

_FEWEST: Final = 3
"""Taps along either side: two passes over smaller kernels save nothing."""


@dataclass(frozen=True)
class Factors:
    """The two sides of a separable kernel, hashable: for each output channel a column and a row.

    Attributes:
        column: float64 numbers, shape (channels, height), as bytes.
        row: float64 numbers, shape (channels, width), as bytes.
        channels: how many channels there are.
    """

    column: bytes
    row: bytes
    channels: int

    def arrays(self) -> tuple[Array, Array]:
        """The columns and the rows."""
        column, row = np.frombuffer(self.column), np.frombuffer(self.row)
        return column.reshape(self.channels, -1), row.reshape(self.channels, -1)


@movement_rule("conv_general_dilated", level="reassociate", backends=("cpu",))
def separable_kernel(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, column · row) → conv(conv(x, column), row), where the kernel is a constant

    For two-dimensional kernels that read one input channel for each output channel (blurs, derivatives),
    float32 and float64, each of which is an outer product up to its own rounding
    (`python benchmarks/rewrites.py --only convolution`).
    """
    window = window_of(node)
    x, kernel = node.operands
    taps = taps_of(node, window)
    if len(taps) != 2 or min(taps) < _FEWEST or kernel.shape[window.rhs[1]] != 1:
        return None
    if window.batch_groups != 1 or window.lhs != window.out or math.prod(kernel.shape) > _LARGEST:
        return None
    if not is_real(node) or not x.dtype == kernel.dtype == node.result.dtype or x.dtype.itemsize < 4:
        return None
    array = contents(kernel)
    factors = None if array is None else factors_of(array.transpose(window.rhs)[:, 0])
    if factors is None:
        return None
    numbers, precision = node.params["dimension_numbers"], node.params["precision"]
    return rewrite(in_two, x, factors=factors, window=window, numbers=numbers, precision=precision)


def contents(value: Value) -> Array | None:
    """The numbers that a value is known to hold."""
    if value.is_const:
        found = _jax.plain_constant(value.const)
        return None if found is None else np.asarray(found)
    facts = facts_of(value)
    if facts.splat is not None:
        return np.full(value.shape, facts.splat)
    return facts.constant


def factors_of(kernels: Array) -> Factors | None:
    """The factors of kernels of shape (channels, height, width), if each is an outer product.

    What is left over may be as large as the rounding of the largest number in the kernel.
    """
    tolerance = 4 * np.finfo(kernels.dtype).eps
    wide = kernels.astype(np.float64)
    if not np.isfinite(wide).all():
        return None
    left, strength, right = np.linalg.svd(wide, full_matrices=False)
    root = np.sqrt(strength[:, :1])
    column, row = left[:, :, 0] * root, right[:, 0] * root
    rest = np.abs(wide - column[:, :, None] * row[:, None])
    if np.any(rest > tolerance * np.abs(wide).max((1, 2), keepdims=True)):
        return None
    return Factors(column.tobytes(), row.tobytes(), len(kernels))


def in_two(x: jax.Array, *, factors: Factors, window: Window, numbers: Any, precision: Any) -> jax.Array:
    """The convolution with the columns, and of its result with the rows."""
    places = [window.rhs.index(d) for d in range(len(window.rhs))]
    groups = window.groups
    for d, side in enumerate(factors.arrays()):
        kernel = np.expand_dims(side, (1, 3 - d)).astype(x.dtype).transpose(places)
        x = lax.conv_general_dilated(
            x,
            jnp.asarray(kernel),
            [s if i == d else 1 for i, s in enumerate(window.strides)],
            [p if i == d else (0, 0) for i, p in enumerate(window.padding)],
            [h if i == d else 1 for i, h in enumerate(window.holes)],
            [h if i == d else 1 for i, h in enumerate(window.spread)],
            dimension_numbers=numbers,
            feature_group_count=groups,
            precision=precision,
        )
        groups = factors.channels
    return x


RULES: Final[tuple[Rule, ...]] = (separable_kernel,)
