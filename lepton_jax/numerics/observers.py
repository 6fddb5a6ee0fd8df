"""Observers: what calibration remembers of the values at one place, in little memory.

An observer is a setting (frozen, hashable, static under jit) with pure functions on a small state of fixed
size: it is carried through scan, stacked by vmap and merged across batches and devices:

    observer = Percentile(percentile=99.99)
    state = observer.init(x.shape)
    state = observer.update(state, x)  # once a batch
    low, high = observer.range(state, scheme)
    scale, zero = scale_of_range(low, high, scheme)

NaN and infinities are counted and otherwise ignored; `check` turns them, and an observer that saw nothing,
into an error that names the place. Integers and wide floats are observed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._histogram_observers import Counts, Entropy, MeanSquaredError, Percentile
from lepton_jax.numerics._observer import Observer
from lepton_jax.numerics._ranges import Range
from lepton_jax.numerics._seen import AxisName, Seen, check, merge_seen, nothing, see, seen_by, seen_over
from lepton_jax.numerics.quantize import Scheme

__all__ = [
    "OBSERVERS",
    "Averages",
    "Counts",
    "Entropy",
    "MeanSquaredError",
    "MinMax",
    "Moments",
    "MovingAverage",
    "Observer",
    "Percentile",
    "Seen",
    "Sums",
    "check",
    "get_observer",
    "seen_by",
]


class Averages(NamedTuple):
    """State of a moving average; each f32 of the shape of the axes kept.

    Attributes:
        seen: see there.
        low: weighted sum of the batches' least numbers. Across devices: psum.
        high: weighted sum of the batches' greatest numbers. Across devices: psum.
        weight: sum of the weights. Across devices: psum.
        decay: momentum to the power of the number of batches. Across devices: pmin.
    """

    seen: Seen
    low: jax.Array
    high: jax.Array
    weight: jax.Array
    decay: jax.Array


class Sums(NamedTuple):
    """State of `Moments`; each f32 of the shape of the axes kept. Across devices all but `seen`: psum.

    Attributes:
        seen: see there.
        total: sum of the numbers.
        absolute: sum of their magnitudes.
        square: sum of their squares.
    """

    seen: Seen
    total: jax.Array
    absolute: jax.Array
    square: jax.Array

    @property
    def mean(self) -> jax.Array:
        """E[x]; 0 where nothing was seen: for bias correction."""
        return self.total / jnp.maximum(self.seen.finite, 1)

    @property
    def magnitude(self) -> jax.Array:
        """E|x|: for AWQ."""
        return self.absolute / jnp.maximum(self.seen.finite, 1)

    @property
    def second(self) -> jax.Array:
        """E[x²]: the diagonal of the Hessian of one input."""
        return self.square / jnp.maximum(self.seen.finite, 1)

    @property
    def largest(self) -> jax.Array:
        """max|x|: for SmoothQuant."""
        return jnp.maximum(jnp.maximum(-self.seen.low, self.seen.high), 0.0)


@dataclass(frozen=True, kw_only=True)
class MinMax(Observer):
    """The least and the greatest number ever seen. State: `Seen`."""

    def merge(self, earlier: Seen, later: Seen) -> Seen:
        """See `Observer.merge`; exact."""
        return merge_seen(earlier, later)

    def merge_over(self, state: Seen, axis_name: AxisName) -> Seen:
        """See `Observer.merge_over`; exact."""
        return seen_over(state, axis_name)

    def _empty(self, shape: tuple[int, ...]) -> Seen:
        return nothing(shape)

    def _add(self, state: Seen, rows: jax.Array, used: jax.Array) -> Seen:
        return merge_seen(state, see(rows, used))


@dataclass(frozen=True, kw_only=True)
class MovingAverage(Observer):
    """The batches' least and greatest numbers, averaged with weights that decay. State: `Averages`.

    The average starts from the first batch, without bias to zero. Merging takes the first state's batches as
    the earlier ones; devices' states count alike.

    Attributes:
        momentum: by how much a batch's weight decays with each later batch, at least 0, less than 1.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and less than 1, not {self.momentum}")

    def merge(self, earlier: Averages, later: Averages) -> Averages:
        """See `Observer.merge`; up to rounding."""
        low, high, weight = (a * later.decay + b for a, b in zip(earlier[1:4], later[1:4], strict=True))
        seen = merge_seen(earlier.seen, later.seen)
        return Averages(seen, low, high, weight, earlier.decay * later.decay)

    def merge_over(self, state: Averages, axis_name: AxisName) -> Averages:
        """See `Observer.merge_over`: the mean of the devices' averages."""
        low, high, weight = (lax.psum(array, axis_name) for array in state[1:4])
        seen = seen_over(state.seen, axis_name)
        return Averages(seen, low, high, weight, lax.pmin(state.decay, axis_name))

    def _empty(self, shape: tuple[int, ...]) -> Averages:
        zero = jnp.zeros(shape, jnp.float32)
        return Averages(nothing(shape), zero, zero, zero, jnp.ones(shape, jnp.float32))

    def _add(self, state: Averages, rows: jax.Array, used: jax.Array) -> Averages:
        seen = see(rows, used)
        some = seen.finite > 0
        weight = jnp.where(some, 1 - self.momentum, 0.0)
        low, high = (jnp.where(some, end, 0.0) * weight for end in (seen.low, seen.high))
        return self.merge(state, Averages(seen, low, high, weight, jnp.where(some, self.momentum, 1.0)))

    def _range(self, state: Averages, scheme: Scheme) -> Range:
        weight = jnp.where(state.weight > 0, state.weight, 1.0)
        return state.low / weight, state.high / weight


@dataclass(frozen=True, kw_only=True)
class Moments(Observer):
    """Means by channel, for AWQ, SmoothQuant and bias correction; its range is that of `MinMax`. State:
    `Sums`.

    Example:
        >>> moments = Moments(axes=(-1,))
        >>> x = jnp.array([[1.0, -4.0], [3.0, 0.0]])
        >>> state = moments.update(moments.init(x.shape), x)
        >>> state.magnitude.tolist(), state.largest.tolist()
        ([2.0, 2.0], [3.0, 4.0])
    """

    def merge(self, earlier: Sums, later: Sums) -> Sums:
        """See `Observer.merge`; up to rounding."""
        sums = (a + b for a, b in zip(earlier[1:], later[1:], strict=True))
        return Sums(merge_seen(earlier.seen, later.seen), *sums)

    def merge_over(self, state: Sums, axis_name: AxisName) -> Sums:
        """See `Observer.merge_over`; up to rounding."""
        return Sums(seen_over(state.seen, axis_name), *(lax.psum(a, axis_name) for a in state[1:]))

    def _empty(self, shape: tuple[int, ...]) -> Sums:
        zero = jnp.zeros(shape, jnp.float32)
        return Sums(nothing(shape), zero, zero, zero)

    def _add(self, state: Sums, rows: jax.Array, used: jax.Array) -> Sums:
        rows_ = jnp.where(used & jnp.isfinite(rows), rows, 0.0)
        sums = (jnp.sum(part, -1) for part in (rows_, jnp.abs(rows_), jnp.square(rows_)))
        return self.merge(state, Sums(see(rows, used), *sums))


OBSERVERS: Final[Mapping[str, type[Observer]]] = MappingProxyType(
    {
        "minmax": MinMax,
        "average": MovingAverage,
        "percentile": Percentile,
        "mse": MeanSquaredError,
        "entropy": Entropy,
    }
)
"""The observers that calibrate activations, by name."""


def get_observer(name: str, **options: Any) -> Observer:
    """The observer of a name in `OBSERVERS`.

    Args:
        name: which.
        options: its settings, e.g. `axes`, `percentile`, `momentum`.

    Raises:
        ValueError: there is none of this name, or it has no such setting.

    Example:
        >>> get_observer("percentile", percentile=99.9).percentile
        99.9
    """
    kind = OBSERVERS.get(name)
    if kind is None:
        raise ValueError(f"there is no observer {name!r}; there are {', '.join(OBSERVERS)}")
    known = [field.name for field in fields(kind)]
    if unknown := set(options) - set(known):
        raise ValueError(f"observer {name!r} has no {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    return kind(**options)
