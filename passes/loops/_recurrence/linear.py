"""Carries whose next values are jointly linear in them: filters, oscillators, rotations, linear state spaces.

Axes along which nothing is mixed are *lanes*: the step is a small matrix for each lane, or one for all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._parts.piece import makers
from lepton_jax.passes.loops._parts.scan import Scan
from lepton_jax.passes.loops._recurrence.lanes import TRANSFERS, Axes, Walk, sizes_along

_MOST_STATES: Final = 128

Transit = tuple[Node, Sequence[Value], Callable[[Walk], Axes | None]]
"""A node, what it takes, and where the lanes of its results are."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the lanes of the carries of a group are.

    Attributes:
        lanes: for each carry the axes that are lanes, in the same order.
        uniform: for each lane axis whether the matrix is the same all along it.
        states: how many numbers of a lane the step mixes.
    """

    lanes: tuple[Axes, ...]
    uniform: tuple[bool, ...]
    states: int


def layout_of(scan: Scan, carries: Sequence[Value], nexts: Sequence[Value]) -> Layout | None:
    """How the next values of some carries are jointly linear in them, if they are."""
    dtype = carries[0].dtype
    if any(c.dtype != dtype or c.aval.size == 0 for c in carries) or _jax.is_extended(dtype):
        return None
    if not np.issubdtype(dtype, np.inexact) and str(dtype) not in ("bfloat16", "float16"):
        return None
    path = _path(scan, carries, nexts)
    if not all(node.op in TRANSFERS and all(v.dtype == dtype for v in node.results) for node in path):
        return None
    ways = [functools.partial(TRANSFERS[node.op], node) for node in path]
    steps: list[Transit] = [(node, node.operands, way) for node, way in zip(path, ways, strict=True)]
    return best_layout(steps, carries, nexts, _MOST_STATES)


def best_layout(
    steps: Sequence[Transit], carries: Sequence[Value], nexts: Sequence[Value], most: int
) -> Layout | None:
    """The layout with the fewest states in a lane, at most `most` of them.

    Args:
        steps: the nodes from carries to their next values, in order.
    """
    for lanes in _candidates(carries):
        found = _try(steps, carries, nexts, lanes, most)
        if found is not None:
            return found
    return None


def _path(scan: Scan, carries: Sequence[Value], nexts: Sequence[Value]) -> list[Node]:
    """The nodes that make the next values from the carries, in order."""
    needed = makers(nexts, lambda value: False)
    moving = set(carries)
    path: list[Node] = []
    for node in scan.body:
        if node in needed and any(v in moving for v in node.operands):
            moving.update(node.results)
            path.append(node)
    return path


def _candidates(carries: Sequence[Value]) -> Iterator[tuple[Axes, ...]]:
    """Lane axes for each carry: all axes, all but one, the leading ones, none."""
    widest = max(carries, key=_rank)
    axes = tuple(range(widest.ndim))
    choices = [axes, *(axes[:i] + axes[i + 1 :] for i in axes[::-1]), *(axes[:i] for i in axes[::-1])]
    for chosen in dict.fromkeys(choices):
        lanes = tuple(chosen if c.ndim == widest.ndim else axes[: len(chosen)] for c in carries)
        fitting = [c.ndim in (widest.ndim, len(chosen)) or not chosen for c in carries]
        sizes = {sizes_along(c, a) for c, a, fits in zip(carries, lanes, fitting, strict=True) if fits}
        if all(fitting) and len(sizes) == 1:
            yield lanes


def _rank(value: Value) -> int:
    return value.ndim


def _try(
    steps: Sequence[Transit],
    carries: Sequence[Value],
    nexts: Sequence[Value],
    lanes: tuple[Axes, ...],
    most: int,
) -> Layout | None:
    states = sum(c.aval.size // math.prod(sizes_along(c, a)) for c, a in zip(carries, lanes, strict=True))
    if states > most:
        return None
    walk = Walk(dict(zip(carries, lanes, strict=True)), [True] * len(lanes[0]))
    for node, reads, transfer in steps:
        found = transfer(walk)
        if found is None or not walk.fits(node, reads, found):
            return None
        walk.lanes.update(dict.fromkeys(node.results, found))
    if any(walk.lanes.get(v, wanted) != wanted for v, wanted in zip(nexts, lanes, strict=True)):
        return None
    return Layout(lanes, tuple(walk.uniform), states)
