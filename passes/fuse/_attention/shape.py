"""How the arrays of an attention lie, and putting them in the order that kernels want."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import jax.numpy as jnp
import numpy as np

Axes = tuple[tuple[int, ...], ...]
"""For each axis of an array the atoms that it counts, outermost first; () for an axis of size one."""

FEATURE: Final = -1
"""The atom that counts features."""


@dataclass(frozen=True)
class Extra:
    """A mask or a bias: its axes, and its factor (-1 for a mask that is to be negated)."""

    kind: Literal["mask", "bias"]
    axes: Axes
    factor: float


@dataclass(frozen=True)
class Shape:
    """An attention that kernels compute, without its arrays; see `Standard`."""

    sizes: tuple[int, ...]
    query: int
    key: int
    batch: tuple[int, ...]
    heads: tuple[int, ...]
    groups: tuple[int, ...]
    axes: tuple[Axes, Axes, Axes]
    result: Axes
    scale: float
    cap: float | None
    band: tuple[float, float]
    extras: tuple[Extra, ...]
    fill: float
    sources: tuple[str, str, str]

    def size(self, *atoms: int) -> int:
        """How many elements these atoms count."""
        return math.prod(self.sizes[a] for a in atoms)

    @property
    def lengths(self) -> tuple[int, int]:
        """The number of queries and of keys."""
        return self.sizes[self.query], self.sizes[self.key]

    @property
    def sees(self) -> bool:
        """Whether every query sees a key for sure."""
        queries, keys = self.lengths
        row = np.arange(queries)
        first, last = np.maximum(row + self.band[0], 0), np.minimum(row + self.band[1], keys - 1)
        return not any(e.kind == "mask" for e in self.extras) and bool((first <= last).all())

    @property
    def targets(self) -> tuple[Axes, Axes, Axes]:
        """The order that kernels want: [batch, length, heads, features]; heads of queries by groups."""
        keys: Axes = (self.batch, (self.key,), self.heads, (FEATURE,))
        return (self.batch, (self.query,), (*self.heads, *self.groups), (FEATURE,)), keys, keys

    def arranged(self, x: Any, which: int) -> Any:
        """Queries (0), keys (1) or values (2) as kernels want them."""
        return arranged(x, self.axes[which], self.targets[which], self.sizes)

    def scattered(self, x: Any, which: int, axes: Axes) -> Any:
        """The way back, to any order of axes."""
        return arranged(x, self.targets[which], axes, self.sizes)

    def rearranged(self, x: Any, axes: Axes) -> Any:
        """An array like the result, with these axes, as kernels give it."""
        return arranged(x, axes, self.targets[0], self.sizes)

    def extra(self, x: Any, extra: Extra) -> Any:
        """A mask or a bias as [batch or 1, heads or 1, queries or 1, keys or 1]."""
        heads = (*self.heads, *self.groups)
        x = arranged(x, extra.axes, (self.batch, heads, (self.query,), (self.key,)), self.sizes)
        if extra.kind == "mask":
            return ~x if extra.factor < 0 else x
        return x * jnp.asarray(extra.factor, x.dtype) if extra.factor != 1 else x


def arranged(x: Any, axes: Axes, wanted: Axes, sizes: Sequence[int]) -> Any:
    """Reshape and transpose an array to other axes; atoms that it lacks become axes of size one.

    Where an axis is to count several atoms of which the array has some, the others are repeated.
    """
    feature = next((n for a, n in zip(axes, x.shape, strict=True) if a == (FEATURE,)), 1)

    def size(atom: int) -> int:
        return feature if atom == FEATURE else sizes[atom]

    atoms = [a for part in axes for a in part]
    x = x.reshape([size(a) for a in atoms])
    order = [a for part in wanted for a in part if a in atoms]
    x = x.transpose([atoms.index(a) for a in order])
    split = [[size(a) if a in atoms else 1 for a in part] for part in wanted]
    x = x.reshape([n for part in split for n in part])
    full = [[size(a) if any(b in atoms for b in part) else 1 for a in part] for part in wanted]
    x = jnp.broadcast_to(x, [n for part in full for n in part])
    return x.reshape([math.prod(part) for part in full])
