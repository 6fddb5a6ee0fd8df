"""Masks for pruning: which weights stay, by scores, a share, and a pattern.

Scores are of the weights' shape; the largest stay. How scores are found is `importance`'s matter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Pattern(ABC):
    """Which weights come and go together."""

    @abstractmethod
    def units(self, scores: jax.Array) -> jax.Array:
        """The scores of what comes and goes together: sums over it, float32."""

    @abstractmethod
    def spread(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A mask of weights of a shape, bool, from one of its units."""

    def mask(self, scores: jax.Array, sparsity: float | jax.Array) -> jax.Array:
        """Which weights stay.

        Args:
            scores: of each weight.
            sparsity: the share of units that goes, 0 to 1; may be traced.

        Returns:
            bool, of the scores' shape. Of equal scores those that stand last stay.

        Example:
            >>> Unstructured().mask(jnp.array([3.0, 1.0, 2.0, 4.0]), 0.5).tolist()
            [True, False, False, True]
        """
        return self.among(self.units(scores), sparsity, scores.shape)

    def among(self, units: jax.Array, sparsity: float | jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A mask of weights of a shape, bool: the units with the least scores go, a share of all."""
        return self.spread(ranks(units) >= gone(sparsity, units.size), shape)


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Each weight on its own."""

    def units(self, scores: jax.Array) -> jax.Array:
        """See `Pattern`."""
        return scores.astype(jnp.float32)

    def spread(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """See `Pattern`."""
        return kept


@dataclass(frozen=True)
class Channel(Pattern):
    """All weights of one place along an axis.

    Attributes:
        axis: of the channels; -1 is the outputs of a kernel `[inputs, outputs]`.
    """

    axis: int = -1

    def units(self, scores: jax.Array) -> jax.Array:
        """See `Pattern`."""
        if not -scores.ndim <= self.axis < scores.ndim:
            raise ValueError(f"an array of shape {scores.shape} has no axis {self.axis}")
        axis = self.axis % scores.ndim
        return jnp.sum(scores, [i for i in range(scores.ndim) if i != axis], jnp.float32)

    def spread(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """See `Pattern`."""
        axis = self.axis % len(shape)
        sizes = [size if i == axis else 1 for i, size in enumerate(shape)]
        return jnp.broadcast_to(kept.reshape(sizes), shape)


@dataclass(frozen=True)
class Block(Pattern):
    """Blocks along the last axes; those at the ends may be smaller.

    Attributes:
        shape: of a block.
    """

    shape: tuple[int, ...] = (4, 4)

    def __post_init__(self) -> None:
        """Check the shape."""
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"a block has sizes of 1 or more, not {self.shape}")

    def units(self, scores: jax.Array) -> jax.Array:
        """See `Pattern`."""
        sizes = self._sizes(scores.shape)
        padding = [(0, -n % size) for n, size in zip(scores.shape, sizes, strict=True)]
        padded = jnp.pad(scores.astype(jnp.float32), padding)
        split = [part for n, size in zip(padded.shape, sizes, strict=True) for part in (n // size, size)]
        return jnp.sum(padded.reshape(split), [2 * i + 1 for i in range(scores.ndim)])

    def spread(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """See `Pattern`."""
        for axis, size in enumerate(self._sizes(shape)):
            kept = jnp.repeat(kept, size, axis)
        return kept[tuple(map(slice, shape))]

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(self.shape) > len(shape):
            raise ValueError(f"blocks of {self.shape} do not fit an array of shape {shape}")
        return (1,) * (len(shape) - len(self.shape)) + self.shape


@dataclass(frozen=True)
class NofM(Pattern):
    """Of every m weights in a row n stay, whatever the share, as long as any are to go.

    2 of 4 is what sparse tensor cores take.

    Attributes:
        n: so many stay.
        m: of so many.
        axis: along which they are counted; -2 is the inputs of a kernel `[inputs, outputs]`. The last group
            may be short.
    """

    n: int = 2
    m: int = 4
    axis: int = -2

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.n < self.m:
            raise ValueError(f"n of m wants 0 < n < m, not {self.n} of {self.m}")

    def units(self, scores: jax.Array) -> jax.Array:
        """See `Pattern`."""
        return scores.astype(jnp.float32)

    def spread(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """See `Pattern`."""
        return kept

    def mask(self, scores: jax.Array, sparsity: float | jax.Array) -> jax.Array:
        """See `Pattern`."""
        if not -scores.ndim <= self.axis < scores.ndim:
            raise ValueError(f"an array of shape {scores.shape} has no axis {self.axis}")
        rows = jnp.moveaxis(scores.astype(jnp.float32), self.axis, -1)
        padded = jnp.pad(
            rows, [(0, 0)] * (rows.ndim - 1) + [(0, -rows.shape[-1] % self.m)], constant_values=-jnp.inf
        )
        groups = padded.reshape(*padded.shape[:-1], -1, self.m)
        place = jnp.argsort(jnp.argsort(-groups, -1, stable=True), -1, stable=True)
        kept = (place < self.n).reshape(padded.shape)[..., : rows.shape[-1]]
        return jnp.moveaxis(kept, -1, self.axis) | (jnp.asarray(sparsity) <= 0)


def ranks(scores: jax.Array) -> jax.Array:
    """The place of each score among all, from the least: int32, of the same shape. NaN is the greatest."""
    order = jnp.argsort(scores.reshape(-1), stable=True)
    places = jnp.zeros(scores.size, jnp.int32).at[order].set(jnp.arange(scores.size, dtype=jnp.int32))
    return places.reshape(scores.shape)


def gone(sparsity: float | jax.Array, count: int) -> jax.Array:
    """How many of so many units go: a whole number."""
    return jnp.round(jnp.asarray(sparsity, jnp.float32) * count).astype(jnp.int32)


def global_masks(
    scores: Sequence[jax.Array], sparsity: float | jax.Array, pattern: Pattern
) -> list[jax.Array]:
    """Masks of several weights, whose units are ranked together.

    Args:
        scores: of each weight; they have to be comparable.
        sparsity: the share of all units that goes, 0 to 1; may be traced.
        pattern: of all of them.
    """
    if isinstance(pattern, NofM):
        return [pattern.mask(each, sparsity) for each in scores]
    units = [pattern.units(each) for each in scores]
    places = ranks(jnp.concatenate([each.reshape(-1) for each in units]))
    kept = places >= gone(sparsity, places.size)
    found, start = [], 0
    for each, unit in zip(scores, units, strict=True):
        found.append(pattern.spread(kept[start : start + unit.size].reshape(unit.shape), each.shape))
        start += unit.size
    return found


def erdos_renyi(shapes: Sequence[tuple[int, ...]], sparsity: float) -> list[float]:
    """The sparsity of each weight so that small ones keep more, with a given one of all together.

    The share that stays is proportional to the sum of an array's sizes over their product: the distribution
    ERK of Evci et al., "Rigging the Lottery" (arXiv:1911.11134); arrays that would keep more than all are
    left dense.

    Args:
        shapes: of the weights.
        sparsity: of all together, 0 to 1.

    Raises:
        ValueError: a sparsity out of range.

    Example:
        >>> [round(each, 3) for each in erdos_renyi([(100, 100), (100, 10)], 0.9)]
        [0.929, 0.61]
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"a sparsity is at least 0 and less than 1, not {sparsity}")
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / max(size, 1) for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while True:
        rest = [i for i in range(len(shapes)) if i not in dense]
        wanted = (1 - sparsity) * sum(sizes) - sum(sizes[i] for i in dense)
        least = sum(raw[i] * sizes[i] for i in rest)
        scale = wanted / least if least else 0.0
        over = {i for i in rest if scale * raw[i] > 1}
        if not over:
            return [0.0 if i in dense else 1 - max(scale, 0.0) * raw[i] for i in range(len(shapes))]
        dense |= over


def erdos_renyi_at(shapes: Sequence[tuple[int, ...]], sparsity: jax.Array) -> list[jax.Array]:
    """`erdos_renyi` at a sparsity that is traced: between those at every hundredth, in a straight line."""
    points = np.linspace(0, 0.99, 100)
    rows = [*(erdos_renyi(shapes, float(point)) for point in points), [1.0] * len(shapes)]
    table = np.array(rows, np.float32)
    return [jnp.interp(sparsity, np.append(points, 1.0), table[:, i]) for i in range(len(shapes))]
