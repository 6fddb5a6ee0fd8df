"""k-means of vectors: a start by k-means++ and Lloyd's steps, the same each time. On the host.

Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding", 2007: each further centroid is one of
the vectors, drawn with a chance proportional to its squared distance from those chosen before.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MOST: Final = 1 << 18
"""So many vectors, at equal distances in the weight, are looked at."""

_SEED: Final = 0
_STEPS: Final = 32


def centroids_of(points: NDArray[Any], mass: NDArray[Any], count: int, fixed: int = 0) -> Floats:
    """Centroids of vectors with a small sum of squared distances, f32[count, d].

    Args:
        points: floats [n, d].
        mass: how much each counts, [n], 0 or more; those with 0 are left out.
        count: of centroids.
        fixed: so many of them, the first, are zero and stay so.
    """
    used = np.flatnonzero(mass > 0)
    used = used[:: -(-used.size // MOST)] if used.size else used
    found = np.zeros((count, points.shape[1]), np.float32)
    if not used.size:
        return found
    points, mass = points[used].astype(np.float32), mass[used].astype(np.float64)
    near = np.sum(np.square(points), 1) if fixed else np.full(len(points), np.float32(3e38))
    found[fixed:] = _seeded(points, mass, near, count - fixed)
    for _ in range(_STEPS):
        codes = nearest(points, found)
        total = np.bincount(codes, mass, count)
        sums = np.stack([np.bincount(codes, mass * part, count) for part in points.T], 1)
        moves = (total > 0) & (np.arange(count) >= fixed)
        moved = np.where(moves[:, None], sums / np.where(total > 0, total, 1)[:, None], found)
        moved = moved.astype(np.float32)
        if np.array_equal(moved, found):
            break
        found = moved
    return found


def _seeded(points: Floats, mass: NDArray[np.float64], near: NDArray[Any], count: int) -> Floats:
    """Some of the vectors, drawn one after another.

    Args:
        points: [n, d].
        mass: [n].
        near: squared distances from what is there already, or ones.
        count: how many.
    """
    draw = np.random.default_rng(_SEED)
    found: list[Floats] = []
    chance = near * mass
    for _ in range(count):
        total = np.cumsum(chance)
        at = int(np.searchsorted(total, draw.random() * total[-1], side="right")) if total[-1] > 0 else 0
        found.append(points[min(at, len(points) - 1)])
        away = np.sum(np.square(points - found[-1]), 1)
        near = np.minimum(near, away)
        chance = near * mass
    return np.stack(found)


def nearest(points: Floats, centroids: Floats) -> NDArray[np.int64]:
    """The index of the nearest centroid, the first of those that are as near.

    Args:
        points: [n, d].
        centroids: [k, d].
    """
    squares = np.sum(np.square(centroids), 1)
    found = np.empty(len(points), np.int64)
    step = max((1 << 22) // len(centroids), 1)
    for start in range(0, len(points), step):
        part = points[start : start + step]
        found[start : start + step] = np.argmin(squares - 2 * part @ centroids.T, 1)
    return found
