"""Which place of a buffer holds what arrives, from a schedule: known before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from lepton_jax.parallel.pipeline.schedules import Schedule, Task

Table: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"
"""A number for each tick and device, `[ticks, stages]`."""


@dataclass(frozen=True)
class Slots:
    """Places for what arrives.

    Attributes:
        count: how many a device has, besides one for what nobody reads.
        store: where each device puts what arrives at the beginning of a tick; `count` for nowhere.
        use: which place its task reads; `count` for none.
    """

    count: int
    store: Table
    use: Table


def activations(schedule: Schedule) -> Slots:
    """Places for what stages send forward: from the tick after it is sent to the last task that reads it."""
    return _slots(
        schedule, "F", lambda task: task.chunk > 0, lambda task: Task("F", task.microbatch, task.chunk - 1)
    )


def cotangents(schedule: Schedule) -> Slots:
    """Places for what stages send backward."""
    last = schedule.chunks - 1
    return _slots(
        schedule, "B", lambda task: task.chunk < last, lambda task: Task("B", task.microbatch, task.chunk + 1)
    )


def kept(schedule: Schedule) -> Slots:
    """Places for what the first half of the backward work keeps for the second: stored after its tick."""
    when = schedule.when
    spans: dict[int, list[tuple[int, int, tuple[int, int]]]] = {}
    for task, tick in when.items():
        if task.work == "W":
            made = when[Task("B", task.microbatch, task.chunk)]
            spans.setdefault(task.chunk % schedule.stages, []).append(
                (made, tick, (task.chunk, task.microbatch))
            )
    chosen = {key: place for each in spans.values() for key, place in _allocated(sorted(each)).items()}
    count = 1 + max(chosen.values(), default=-1)
    shape = (len(schedule.table), schedule.stages)
    store, use = np.full(shape, count, np.int32), np.full(shape, count, np.int32)
    for (chunk, microbatch), place in chosen.items():
        device = chunk % schedule.stages
        store[when[Task("B", microbatch, chunk)], device] = place
        use[when[Task("W", microbatch, chunk)], device] = place
    return Slots(count, store, use)


def _slots(
    schedule: Schedule, first: str, receives: Callable[[Task], bool], sender: Callable[[Task], Task]
) -> Slots:
    when = schedule.when
    readers: dict[tuple[int, int], list[Task]] = {}
    for task in when:
        if receives(task) and task.work in ("FB" if first == "F" else "B"):
            readers.setdefault((task.chunk, task.microbatch), []).append(task)
    chosen: dict[tuple[int, int], int] = {}
    count = 0
    for device in range(schedule.stages):
        spans = sorted(
            (when[sender(tasks[0])] + 1, max(when[task] for task in tasks), key)
            for key, tasks in readers.items()
            if key[0] % schedule.stages == device
        )
        places = _allocated(spans)
        chosen |= places
        count = max([count, *(place + 1 for place in places.values())])
    shape = (len(schedule.table), schedule.stages)
    store, use = np.full(shape, count, np.int32), np.full(shape, count, np.int32)
    for key, tasks in readers.items():
        device = key[0] % schedule.stages
        store[when[sender(tasks[0])] + 1, device] = chosen[key]
        for task in tasks:
            use[when[task], device] = chosen[key]
    return Slots(count, store, use)


def _allocated(spans: Iterable[tuple[int, int, tuple[int, int]]]) -> dict[tuple[int, int], int]:
    """A place for each span of ticks, so that no two at once have the same."""
    ends: list[int] = []
    found = {}
    for start, end, key in spans:
        place = next((i for i, busy in enumerate(ends) if busy < start), len(ends))
        if place == len(ends):
            ends.append(end)
        ends[place] = end
        found[key] = place
    return found
