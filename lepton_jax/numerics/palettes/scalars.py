"""k-means of numbers: the optimum by dynamic programming, and Lloyd's steps. On the host, in float64.

In one dimension clusters are intervals of the sorted numbers, and the best k of them are found layer by
layer: the best j clusters of a prefix end in a cluster that begins where j - 1 clusters of a shorter prefix
ended. Where it begins grows with the prefix (the costs satisfy the quadrangle inequality), so each layer
takes O(n log n) by dividing and conquering: X. Wu, "Optimal quantization by matrix searching", 1991; Grønlund
et al. (arXiv:1701.07204). All places of one depth of the division, of all groups, are searched at once.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_BINS: Final = 1 << 16
"""So many distinct numbers are told apart: memory is bounded by it, whatever the size of a weight."""

_COARSE: Final = 1 << 10
_MOST_AT_ONCE: Final = 1 << 17


class Bins(NamedTuple):
    """Distinct numbers in ascending order and how much each counts, f64[n] each; n may be 0."""

    values: Floats
    mass: Floats


def bins_of(x: NDArray[Any], mass: Floats | None = None, most: int = MOST_BINS) -> Bins:
    """Distinct numbers in ascending order, those that are close put together if there are too many.

    Up to `most` numbers stay as they are, and so do float16 and bfloat16, which have no more than 2^16
    values, if `most` is that. Others fall in `most` equal parts of their range, each of which is represented
    by its mean. What that costs: the best clusters that end at the ends of parts exceed the optimum by at
    most 2·(distance of two centroids)·(width of a part) for each number in the k - 1 parts where clusters
    meet.

    Args:
        x: floats [n].
        mass: how much each counts, 0 or more; None: all the same. Those with 0 are left out.
        most: 2 or more.
    """
    narrow = x.dtype.itemsize == 2 and x.size > MOST_BINS and most >= MOST_BINS
    if narrow:
        codes = x.view(np.uint16)
        total: Floats = np.bincount(codes, mass, 1 << 16).astype(np.float64)
        with np.errstate(invalid="ignore"):  # NaN is among them, with no mass
            values = np.arange(1 << 16, dtype=np.uint16).view(x.dtype).astype(np.float64)
    else:
        values = x.astype(np.float64)
        total = np.ones(x.size) if mass is None else np.asarray(mass, np.float64)
    used = total > 0
    values, total = values[used], total[used]
    if values.size > most and not narrow:
        return _parts(values, total, most)
    found, which = np.unique(values, return_inverse=True)
    return Bins(found, np.bincount(which, total, found.size).astype(np.float64))


def _parts(x: Floats, mass: Floats, most: int) -> Bins:
    """The means of equal parts of the range of numbers."""
    low, high = x.min(), x.max()
    width = (high - low) / most or 1.0
    place = np.minimum(((x - low) / width).astype(np.int64), most - 1)
    total = np.bincount(place, mass, most).astype(np.float64)
    first = np.bincount(place, mass * x, most)
    used = total > 0
    return Bins(first[used] / total[used], total[used])


def optimal(groups: list[Bins], count: int) -> Floats:
    """The centroids with the least sum of squared distances, f64[groups, count], ascending.

    Takes O(count · n log n) time for each group, and memory for `count` · n places.

    Args:
        groups: of each the numbers.
        count: of centroids, 1 or more. Where there are fewer distinct numbers, some centroids are the same.

    Example:
        >>> optimal([bins_of(np.array([0.0, 1.0, 9.0, 10.0]))], 2).tolist()
        [[0.5, 9.5]]
    """
    found = np.zeros((len(groups), count))
    order = sorted(range(len(groups)), key=lambda i: groups[i].values.size)
    while order:
        size = _padded(groups[order[-1]])
        some, order = order[-max(_MOST_AT_ONCE // size, 1) :], order[: -max(_MOST_AT_ONCE // size, 1)]
        found[some] = _Division([groups[i] for i in some], size).run(count)
    return found


def _padded(bins: Bins) -> int:
    return 1 << max(bins.values.size - 1, 1).bit_length()


class _Division:
    """The layers of some groups, of which each is filled up to `size` places, a power of two."""

    def __init__(self, groups: list[Bins], size: int) -> None:
        self.groups, self.size = groups, size
        self.sums = np.zeros((3, len(groups), size + 1))
        for i, (values, mass) in enumerate(groups):
            middle = np.average(values, weights=mass) if values.size else 0.0
            away = values - middle
            for power in range(3):
                self.sums[power, i, 1 : values.size + 1] = np.cumsum(mass * away**power)
                self.sums[power, i, values.size + 1 :] = self.sums[power, i, values.size]
        self.flat = self.sums.reshape(3, -1)
        self.first = np.arange(len(groups))[:, None] * (size + 1)

    def run(self, count: int) -> Floats:
        """The centroids of each group, [groups, count]."""
        ends = np.tile(np.arange(self.size + 1), (len(self.groups), 1))
        best = self.cost(np.broadcast_to(self.first, ends.shape), self.first + ends)
        starts = [np.zeros_like(ends)]
        for turn in range(1, count):
            best, start = self.layer(best, is_last=turn == count - 1)
            starts.append(start)
        found = np.zeros((len(self.groups), count))
        for i, (values, mass) in enumerate(self.groups):
            end = self.size
            for turn in range(count - 1, -1, -1):
                start_of = int(starts[turn][i, end])
                found[i, turn] = _mean(values, mass, start_of, end)
                end = start_of
        return np.sort(found, 1)

    def cost(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> Floats:
        """The squared distances from their mean of what lies between places of the flat sums."""
        mass, first, second = (part[end] - part[start] for part in self.flat)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = second - first * first / mass
        return np.where(mass > 0, np.maximum(found, 0), 0.0)

    def layer(self, best: Floats, *, is_last: bool) -> tuple[Floats, NDArray[np.int64]]:
        """With one cluster more: the cost of each prefix, and where its last cluster begins."""
        size, every = self.size, np.arange(self.size + 1)
        cost, start = np.zeros_like(best), np.zeros(best.shape, np.int64)
        whole = best + self.cost(self.first + every, np.broadcast_to(self.first + size, best.shape))
        start[:, size] = np.argmin(whole, 1)
        cost[:, size] = np.min(whole, 1)
        step = 0 if is_last else size // 2
        while step:
            ends = np.arange(step, size, 2 * step)
            low, high = start[:, ends - step], np.minimum(start[:, ends + step], ends)
            counts = (high - low + 1).ravel()
            firsts = np.cumsum(counts) - counts
            at = np.arange(counts.sum()) + np.repeat((self.first + low).ravel() - firsts, counts)
            to = np.repeat((self.first + ends).ravel(), counts)
            found = best.reshape(-1)[at] + self.cost(at, to)
            least = np.minimum.reduceat(found, firsts)
            hits = np.flatnonzero(found == np.repeat(least, counts))
            chosen = at[hits[np.searchsorted(hits, firsts)]].reshape(low.shape)
            start[:, ends] = chosen - self.first
            cost[:, ends] = least.reshape(low.shape)
            step //= 2
        return cost, start


def _mean(values: Floats, mass: Floats, start: int, end: int) -> float:
    """The mean of numbers, or one of those where they would begin if there are none."""
    if not values.size:
        return 0.0
    part = slice(start, min(end, values.size))
    if start >= part.stop:
        return float(values[min(start, values.size - 1)])
    return float(np.average(values[part], weights=mass[part]))


def spread(bins: Bins, count: int) -> Floats:
    """Centroids to start from: as dense as the cube root of the density, f64[count], ascending.

    This is what is optimal for many centroids (Panter & Dite, "Quantization distortion in pulse-count
    modulation", 1951).

    Args:
        bins: the numbers.
        count: of centroids.
    """
    if not bins.values.size:
        return np.zeros(count)
    low, high = bins.values[0], bins.values[-1]
    width = (high - low) / _COARSE or 1.0
    place = np.minimum(((bins.values - low) / width).astype(np.int64), _COARSE - 1)
    whole = np.cumsum(np.cbrt(np.bincount(place, bins.mass, _COARSE)))
    wanted = (np.arange(count) + 0.5) / count * whole[-1]
    found: Floats = np.minimum(low + (np.searchsorted(whole, wanted) + 0.5) * width, high)
    return found


def lloyd(bins: Bins, centroids: Floats, steps: int = 100) -> Floats:
    """Centroids after steps that put each number to the nearest one and each one in the middle of its own.

    Args:
        bins: the numbers.
        centroids: f64[k], ascending. One that has no numbers stays where it is.
        steps: so many at most; fewer where nothing moves any more.
    """
    mass = np.append(0.0, np.cumsum(bins.mass))
    first = np.append(0.0, np.cumsum(bins.mass * bins.values))
    for _ in range(steps):
        inner = np.searchsorted(bins.values, (centroids[1:] + centroids[:-1]) / 2)
        ends = np.concatenate([[0], inner, [bins.values.size]])
        own = np.diff(mass[ends])
        moved = np.where(own > 0, np.diff(first[ends]) / np.where(own > 0, own, 1), centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = np.sort(moved)
    return centroids
