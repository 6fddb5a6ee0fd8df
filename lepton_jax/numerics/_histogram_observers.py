"""Observers that keep a histogram and find a range in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.numerics import _histogram
from lepton_jax.numerics._histogram import Histogram
from lepton_jax.numerics._observer import Observer, rounding_of
from lepton_jax.numerics._ranges import Range, least_divergence, least_squares
from lepton_jax.numerics._scheme import Scheme
from lepton_jax.numerics._seen import AxisName, Seen, merge_seen, nothing, see, seen_over


class Counts(NamedTuple):
    """State of the observers that keep a histogram: `seen` and `histogram`, see there."""

    seen: Seen
    histogram: Histogram


@dataclass(frozen=True, kw_only=True)
class _HistogramObserver(Observer):
    """Keeps a histogram whose range grows by powers of two. State: `Counts`.

    Attributes:
        bins: a power of two. Its width is between 2/bins and 4/bins of the largest magnitude.
    """

    bins: int = 2048

    def merge(self, earlier: Counts, later: Counts) -> Counts:
        """See `Observer.merge`; exact while no bin counts more than 2^24 numbers."""
        return Counts(
            merge_seen(earlier.seen, later.seen), _histogram.merged(earlier.histogram, later.histogram)
        )

    def merge_over(self, state: Counts, axis_name: AxisName) -> Counts:
        """See `Observer.merge_over`; exact as `merge` is."""
        return Counts(seen_over(state.seen, axis_name), _histogram.merged_over(state.histogram, axis_name))

    def _empty(self, shape: tuple[int, ...]) -> Counts:
        return Counts(nothing(shape), _histogram.empty_histogram(shape, self.bins))

    def _add(self, state: Counts, rows: jax.Array, used: jax.Array) -> Counts:
        seen = merge_seen(state.seen, see(rows, used))
        return Counts(seen, _histogram.add_numbers(state.histogram, rows, used & jnp.isfinite(rows)))


@dataclass(frozen=True, kw_only=True)
class Percentile(_HistogramObserver):
    """Covers a percentage of the numbers; the largest are clipped. State: `Counts`.

    Of the magnitudes for a symmetric scheme, otherwise at both ends, as `numpy.percentile` gives it within
    the width of a bin (McKinstry et al., "Discovering Low-Precision Networks Close to Full-Precision
    Networks", 2018).

    Attributes:
        percentile: of 100.
    """

    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must be more than 50 and at most 100, not {self.percentile}")

    def _range(self, state: Counts, scheme: Scheme) -> Range:
        tail = 1 - self.percentile / 100
        seen, histogram = state
        if not tail:
            return seen.low, seen.high
        if scheme.symmetric:
            size = jnp.maximum(-seen.low, seen.high)
            size = jnp.minimum(_histogram.quantile(histogram, tail, side="size"), size)
            return -size, size
        low = jnp.maximum(_histogram.quantile(histogram, tail, side="low"), seen.low)
        return low, jnp.minimum(_histogram.quantile(histogram, tail, side="high"), seen.high)


@dataclass(frozen=True, kw_only=True)
class _Searching(_HistogramObserver):
    """What observers have in common that try ranges and keep the best."""

    candidates: int
    _search: ClassVar[Callable[..., Range]]

    def _range(self, state: Counts, scheme: Scheme) -> Range:
        return type(self)._search(
            state.histogram,
            (state.seen.low, state.seen.high),
            rounding_of(scheme),
            symmetric=scheme.symmetric,
            candidates=self.candidates,
        )


@dataclass(frozen=True, kw_only=True)
class MeanSquaredError(_Searching):
    """The range with the least expected squared rounding error in the scheme's format. State: `Counts`.

    As in Banner et al., "Post Training 4-bit Quantization of Convolutional Networks" (2019), but over the
    numbers seen instead of a distribution that they are taken to have.

    Attributes:
        candidates: ranges tried for each end.
    """

    candidates: int = 100
    _search = staticmethod(least_squares)


@dataclass(frozen=True, kw_only=True)
class Entropy(_Searching):
    """The range that keeps most information, as TensorRT calibrates. State: `Counts`.

    The least Kullback-Leibler divergence of the rounded from the original distribution: Migacz, "8-bit
    Inference with TensorRT" (GTC 2017). Exact zeros do not count.

    Attributes:
        candidates: ranges tried.
    """

    bins: int = 8192
    candidates: int = 128
    _search = staticmethod(least_divergence)
