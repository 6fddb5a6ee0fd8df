"""Which rank each of many weights gets: by the energy that is kept, or so that all together fit a budget."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

_ROUNDING: Final = 1e-10
"""The share of squared singular values that float32 cannot tell from none."""


class Curve(NamedTuple):
    """What one weight may become.

    Attributes:
        costs: of each choice, f64[choices]: parameters, or operations.
        errors: of each, the squared error as a part of the whole, f64[choices].
    """

    costs: Array
    errors: Array


def tail(spectrum: Any) -> Array:
    """The squared error that each rank leaves, as a part of the whole: f64[n + 1], from rank 0 to n.

    Args:
        spectrum: singular values, [..., n]; several matrices are cut at one rank.
    """
    squares = np.square(np.asarray(spectrum, np.float64))
    squares = squares.reshape(-1, squares.shape[-1]).sum(0)
    left = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return left / left[0] if left[0] > 0 else np.zeros_like(left)


def rank_of_energy(errors: Sequence[float] | Array, energy: float) -> int:
    """The first choice that keeps this share of the squared singular values; the last if none does.

    Args:
        errors: of each choice, as of `tail`.
        energy: 0 to 1.
    """
    enough = np.flatnonzero(np.asarray(errors) <= 1 - energy + _ROUNDING)
    return int(enough[0]) if enough.size else len(errors) - 1


def allocate(curves: Sequence[Curve], budget: float) -> list[int]:
    """A choice for each weight: least error in sum, with costs that are within a budget in sum.

    Of each weight the choices on the lower convex hull are taken in the order of what they save of error for
    their cost, which is optimal up to the last step; after that, what else fits.

    Args:
        curves: of the weights, each with a choice at least.
        budget: for all together. Where even the cheapest choices are above it, these are taken.

    Returns:
        The position of the choice in each curve.

    Example:
        >>> steep = Curve(np.array([1.0, 2.0, 3.0]), np.array([0.9, 0.1, 0.0]))
        >>> flat = Curve(np.array([1.0, 2.0, 3.0]), np.array([0.6, 0.5, 0.4]))
        >>> allocate([steep, flat], 4.0)
        [2, 0]
    """
    hulls = [_hull(curve) for curve in curves]
    chosen = [0] * len(curves)
    spent = sum(float(curve.costs[hull[0]]) for curve, hull in zip(curves, hulls, strict=True))
    waiting = [step for i in range(len(curves)) if (step := _step(curves[i], hulls[i], i, 0))]
    heapq.heapify(waiting)
    while waiting:
        _, i, more = heapq.heappop(waiting)
        if spent + more > budget:
            continue
        spent += more
        chosen[i] += 1
        if step := _step(curves[i], hulls[i], i, chosen[i]):
            heapq.heappush(waiting, step)
    found = [hull[at] for hull, at in zip(hulls, chosen, strict=True)]
    return _filled(curves, found, budget - spent)


def _step(curve: Curve, hull: Sequence[int], which: int, at: int) -> tuple[float, int, float] | None:
    """The next choice on a hull: how much error it saves for its cost (less is better), and its cost."""
    if at + 1 == len(hull):
        return None
    now, then = hull[at], hull[at + 1]
    more = float(curve.costs[then] - curve.costs[now])
    return float(curve.errors[then] - curve.errors[now]) / more, which, more


def _hull(curve: Curve) -> list[int]:
    """The choices on the lower convex hull, from the cheapest to the one with the least error."""
    order = np.lexsort((curve.errors, curve.costs))
    found: list[int] = []
    for i in map(int, order):
        if found and curve.errors[i] >= curve.errors[found[-1]]:
            continue
        while len(found) > 1 and _is_above(curve, found[-2], found[-1], i):
            found.pop()
        found.append(i)
    return found


def _is_above(curve: Curve, a: int, b: int, c: int) -> bool:
    (xa, xb, xc), (ya, yb, yc) = curve.costs[[a, b, c]], curve.errors[[a, b, c]]
    return bool((yb - ya) * (xc - xa) >= (yc - ya) * (xb - xa))


def _filled(curves: Sequence[Curve], chosen: list[int], left: float) -> list[int]:
    """The choices, with what is left of a budget spent where one more choice still fits."""
    gains = []
    for i, (curve, now) in enumerate(zip(curves, chosen, strict=True)):
        fits = np.flatnonzero((curve.costs - curve.costs[now] <= left) & (curve.errors < curve.errors[now]))
        gains += [(float(curve.errors[j] - curve.errors[now]), i, int(j)) for j in fits]
    for _, i, j in sorted(gains):
        curve = curves[i]
        more = float(curve.costs[j] - curve.costs[chosen[i]])
        if more <= left and curve.errors[j] < curve.errors[chosen[i]]:
            chosen[i], left = j, left - more
    return chosen
