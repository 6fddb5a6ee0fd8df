"""What all observers have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.numerics._ranges import Range, Rounding
from lepton_jax.numerics._seen import AxisName, seen_by
from lepton_jax.numerics.quantize import Scheme, fake_quantize, scale_of_range


@dataclass(frozen=True, kw_only=True)
class Observer:
    """What all observers have in common.

    Attributes:
        axes: axes of the observed array for which statistics are kept apart; none: for the whole array.
    """

    axes: tuple[int, ...] = ()

    def init(self, shape: tuple[int, ...]) -> Any:
        """The state before the first batch of arrays of this shape (of which only `axes` matter).

        Raises:
            ValueError: if the arrays have no such axis.
        """
        return self._empty(tuple(shape[axis] for axis in self._kept(len(shape))))

    def update(self, state: Any, x: jax.Array, mask: jax.Array | None = None) -> Any:
        """The state after one more array.

        Args:
            state: as from `init` or `update`.
            x: numbers of any dtype, of the shape that `init` was told but for the axes that are not kept.
            mask: broadcastable to x; what is false does not count (padding tokens).
        """
        kept = self._kept(x.ndim)
        order = (*kept, *(axis for axis in range(x.ndim) if axis not in kept))
        counted = jnp.ones((), bool) if mask is None else mask.astype(bool)
        rows = x.astype(jnp.float32).transpose(order)
        used = jnp.broadcast_to(counted, x.shape).transpose(order)
        shape = tuple(x.shape[axis] for axis in kept)
        size = math.prod(x.shape) // max(math.prod(shape), 1)
        return self._add(state, rows.reshape(*shape, size), used.reshape(*shape, size))

    def merge(self, earlier: Any, later: Any) -> Any:
        """The state after the arrays of both; associative, and for all but `MovingAverage` commutative."""
        raise NotImplementedError

    def merge_over(self, state: Any, axis_name: AxisName) -> Any:
        """The state after the arrays of all devices along a mapped axis (in shard_map, vmap or pmap)."""
        raise NotImplementedError

    def range(self, state: Any, scheme: Scheme) -> Range:
        """The range that a scale shall cover, two f32 of the shape of the axes kept; zero is within.

        Symmetric schemes get a symmetric range. Where nothing was seen, both ends are zero.

        Args:
            state: as from `update` or `merge`.
            scheme: what the numbers will be rounded to; its `shared` and `group` play no part.

        Raises:
            ValueError: if nothing was seen at all (not noticed under jit), or the format has a scale of its
                own for each block, which no calibration can know.
        """
        if scheme.fmt.block:
            raise ValueError(f"{scheme.fmt} computes a scale for each block of numbers: nothing to calibrate")
        seen = seen_by(state)
        if not isinstance(seen.finite, jax.core.Tracer) and seen.finite.size and not seen.finite.any():
            raise ValueError("the observer saw no finite number: run calibration batches through it first")
        low, high = self._range(state, scheme)
        some = seen.finite > 0
        low = jnp.where(some, jnp.minimum(low, 0), 0.0)
        high = jnp.where(some, jnp.maximum(high, 0), 0.0)
        if scheme.symmetric:
            high = jnp.maximum(-low, high)
            low = -high
        return low, high

    def _empty(self, shape: tuple[int, ...]) -> Any:
        raise NotImplementedError

    def _add(self, state: Any, rows: jax.Array, used: jax.Array) -> Any:
        raise NotImplementedError

    def _range(self, state: Any, scheme: Scheme) -> Range:
        seen = seen_by(state)
        return seen.low, seen.high

    def _kept(self, rank: int) -> tuple[int, ...]:
        if any(not -rank <= axis < rank for axis in self.axes):
            raise ValueError(f"{type(self).__name__} keeps axes {self.axes}; the array has {rank}")
        return tuple(axis % rank for axis in self.axes)


def rounding_of(scheme: Scheme) -> Rounding:
    """How a scheme rounds numbers with one scale, made of a range."""
    single = replace(scheme, shared=None, group=None, group_axis=None)

    def rounded(numbers: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
        scale, zero = scale_of_range(low[None], high[None], single)
        return fake_quantize(numbers, single, scale, zero)

    return rounded
