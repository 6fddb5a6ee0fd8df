"""What is said of some dimensions of an array, while others are open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lepton_jax.parallel.layouts import Layout


@dataclass(frozen=True)
class Leading:
    """Axes that split a dimension, the first of those that do, in this order."""

    axes: tuple[str, ...]


Opened = Sequence[tuple[str, ...] | Leading | None]
"""Of each dimension: the axes that split it; those before others; None where it is free."""


def agrees(layout: Layout, entries: Opened) -> bool:
    """Whether a layout splits the dimensions that are not free as they say.

    Example:
        >>> agrees(Layout((("data", "model"), ())), (Leading(("data",)), None))
        True
    """
    return all(
        each is None or (axes[: len(each.axes)] == each.axes if isinstance(each, Leading) else axes == each)
        for each, axes in zip(entries, layout.dims, strict=True)
    )
