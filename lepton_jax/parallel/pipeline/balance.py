"""Cutting a line of pieces of work into contiguous parts so that the slowest is as fast as can be.

Dynamic programming over the ends of the parts, as PipeDream and Alpa do (Narayanan et al., 2019, arXiv
1806.03377, section 3.1; Zheng et al., 2022, arXiv 2201.12023, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

SLACK: Final = 1.05
"""How much slower than the best the slowest part may be where less is sent for it."""


@dataclass(frozen=True)
class Line:
    """What parts of a line of `n` pieces cost.

    Attributes:
        seconds: of each piece, `[n]`.
        sending: seconds to send what crosses each place between pieces, `[n + 1]`; 0 at both ends.
        held: bytes of each piece that its part holds once: parameters, gradients, activations, `[n]`.
        crossing: bytes that cross each place, `[n + 1]`, as often held as microbatches are live.
    """

    seconds: Numbers
    sending: Numbers
    held: Numbers
    crossing: Numbers

    def part_seconds(self, first: int, end: int) -> float:
        """What the part of the pieces `first` up to `end` takes: its work, and what it receives and sends."""
        return float(self.seconds[first:end].sum() + self.sending[first] + self.sending[end])

    def part_bytes(self, first: int, end: int, live: int) -> float:
        """What it holds with as many live microbatches."""
        return float(self.held[first:end].sum() + live * self.crossing[first])


def best_cut(
    line: Line, places: Sequence[int], live: Sequence[int], memory: float | None = None
) -> list[int] | None:
    """The places at which to cut a line into `len(live)` parts.

    Of all cuts whose slowest part takes at most 5 % longer than that of the best, the one that sends least.

    Args:
        places: where it may be cut, ascending, within 1 … n - 1.
        live: for each part how many microbatches it holds.
        memory: bytes that no part may exceed.

    Returns:
        The places, one fewer than parts; None if no cut has parts that are small enough.
    """
    ends = np.asarray([0, *places, len(line.seconds)])
    work = np.concatenate([[0.0], np.cumsum(line.seconds)])[ends]
    held = np.concatenate([[0.0], np.cumsum(line.held)])[ends]
    sending, crossing = line.sending[ends], line.crossing[ends]
    # part[k, i, j]: seconds of a part from end i to end j; too large ones never finish
    seconds = work[None, :] - work[:, None] + sending[:, None] + sending[None, :]
    seconds[np.tril_indices(len(ends))] = np.inf
    holds = held[None, :] - held[:, None]
    costs = []
    for count in live:
        fits = True if memory is None else holds + count * crossing[:, None] <= memory
        costs.append(np.where(fits, seconds, np.inf))
    slowest = _shortest(costs, np.maximum)
    if slowest is None:
        return None
    allowed = SLACK * max(cost[i, j] for cost, i, j in zip(costs, slowest[:-1], slowest[1:], strict=True))
    sent = [np.where(cost <= allowed, sending[None, :] + 1e-9 * cost, np.inf) for cost in costs]
    found = _shortest(sent, np.add)
    assert found is not None  # the slowest part's cut is among them
    return [int(ends[i]) for i in found[1:-1]]


def _shortest(costs: Sequence[Numbers], join: Any) -> list[int] | None:
    """The ends of parts, from the first to the last, whose costs joined are least."""
    count = len(costs[0])
    best = np.full(count, np.inf)
    best[0] = 0.0
    came: list[Any] = []
    for cost in costs:
        through = join(best[:, None], cost)
        came.append(np.argmin(through, axis=0))
        best = np.min(through, axis=0)
    if not np.isfinite(best[-1]):
        return None
    path = [count - 1]
    for back in reversed(came):
        path.append(int(back[path[-1]]))
    return path[::-1]
