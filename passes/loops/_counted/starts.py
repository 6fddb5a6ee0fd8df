"""Where the slices of a loop begin."""

from __future__ import annotations

from lepton_jax.ir.graph import Value
from lepton_jax.passes.loops._counted.places import Place, Places

Written = tuple[Value, int, Place]
"""What is written into an array, along which axis, and where."""


def starts_of(
    indices: list[Value], sizes: tuple[int, ...], places: Places, source: Value
) -> tuple[int, Place, tuple[int, ...]] | None:
    """The axis along which slices of size 1 follow one another, their place, and the other starts."""
    found = [places.of(index) for index in indices]
    moving = [d for d, place in enumerate(found) if place is None or place[1]]
    if len(moving) != 1:
        return None
    (axis,) = moving
    place = found[axis]
    if place is None or sizes[axis] != 1 or not is_inside(place, places.length, source.shape[axis]):
        return None
    limits = [n - size for n, size in zip(source.shape, sizes, strict=True)]
    others = tuple(min(max(p[0], 0), most) if p else 0 for p, most in zip(found, limits, strict=True))
    return axis, place, others


def is_inside(place: Place, length: int, size: int) -> bool:
    """Whether a place stays inside of an axis, moving by one."""
    first, by = place
    last = first + by * (length - 1)
    return abs(by) == 1 and min(first, last) >= 0 and max(first, last) < size
