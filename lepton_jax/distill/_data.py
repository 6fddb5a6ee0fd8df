"""Batches of several epochs, from any iterable."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lepton_jax.rewrite import UsageError

Data = Iterable[Any] | Callable[[int], Iterable[Any]]
"""Batches, or a function from the number of the epoch to its batches."""


def batches(
    data: Data, epochs: int | None, steps: int | None, start: tuple[int, int]
) -> Iterator[tuple[int, int, bool, Any]]:
    """The epoch, the number in it, whether it is the epoch's last, and the batch, one after another.

    Args:
        data: where they come from.
        epochs: how many; None: as many as the steps take.
        steps: how many batches in all are wanted, those before `start` among them; None: all.
        start: the epoch and the number in it of the first batch; those before it in its epoch are read and
            dropped.

    Raises:
        UsageError: there are no batches, or an iterator is to be read twice.
    """
    once = not callable(data) and iter(data) is data
    if once and (epochs or 1) > 1:
        raise UsageError(
            f"data is an iterator, which can be read once, and {epochs} epochs are wanted: "
            "give a list, an object with __iter__, or a function from the epoch to its batches"
        )
    for epoch in range(start[0], epochs) if epochs is not None else itertools.count(start[0]):
        source = iter(data(epoch) if callable(data) else data)
        count = 0
        for number, (batch, last) in enumerate(_with_end(source)):
            count += 1
            if epoch > start[0] or number >= start[1]:
                yield epoch, number, last, batch
        if not count:
            raise UsageError(f"data has no batches in epoch {epoch}")
        if once and steps is not None:
            raise UsageError(
                f"data ended after {count} batches, of {steps} steps: it is an iterator, which can be read "
                "once; give a list, an object with __iter__, or a function from the epoch to its batches"
            )


def _with_end(source: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """What an iterator gives, and whether it is the last of it."""
    batch = next(source, _NOTHING)
    while batch is not _NOTHING:
        following = next(source, _NOTHING)
        yield batch, following is _NOTHING
        batch = following


_NOTHING: Any = object()
