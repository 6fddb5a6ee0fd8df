"""Pipeline schedules as plain data: which device does what at which time.

A *chunk* is a part of the layers. Device `d` of `S` holds the chunks `d`, `d + S`, `d + 2 S`, …: one without
virtual stages, `V` with them. A *task* is the forward (F) or backward (B) work of one chunk on one
microbatch; a schedule that splits the backward work has tasks for the gradients of the inputs (B) and of
the parameters (W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, get_args

from lepton_jax.parallel.pipeline import orders
from lepton_jax.parallel.pipeline.orders import Order, Work

Name = Literal["gpipe", "1f1b", "eager-1f1b", "interleaved", "zb-h1"]
NAMES: Final[tuple[str, ...]] = get_args(Name)
"""The schedules that there are."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a device does in one tick.

    Attributes:
        work: F forward, B backward (with split backward work: of the inputs alone), W of the parameters.
        microbatch: of which microbatch.
        chunk: with which chunk, counted over all devices.
    """

    work: Work
    microbatch: int
    chunk: int

    def __str__(self) -> str:
        return f"{self.work}{self.microbatch}"


Row = tuple[Task | None, ...]
"""One tick: what each device does, None where it waits."""


class ScheduleError(ValueError):
    """A table that is no schedule: the message says which task is wrong."""


@dataclass(frozen=True)
class Schedule:
    """A table of ticks × devices. What a task makes can be read one tick later, by a neighbour on the ring.

    Attributes:
        name: as in `NAMES`.
        stages: the number of devices.
        microbatches: into how many a batch is cut.
        virtual: chunks on each device.
        table: for each tick, for each device its task.

    Example:
        >>> print(schedule("1f1b", 2, 3))
        1f1b: 2 stages, 3 microbatches, bubble 25.0 %, live 2 1
        0 | F0 F1 .  B0 F2 B1 .  B2
        1 | .  F0 B0 F1 B1 F2 B2 .
    """

    name: str
    stages: int
    microbatches: int
    virtual: int
    table: tuple[Row, ...]

    @property
    def chunks(self) -> int:
        """Chunks on all devices together."""
        return self.stages * self.virtual

    @property
    def splits(self) -> bool:
        """Whether the gradients of parameters are tasks of their own."""
        return any(task is not None and task.work == "W" for row in self.table for task in row)

    @cached_property
    def when(self) -> Mapping[Task, int]:
        """The tick of each task."""
        return {task: tick for tick, row in enumerate(self.table) for task in row if task is not None}

    @property
    def bubble(self) -> float:
        """The part of all ticks of all devices in which a device waits."""
        slots = len(self.table) * self.stages
        return 1.0 - len(self.when) / slots

    @cached_property
    def live(self) -> tuple[int, ...]:
        """For each device the most microbatches, of each of its chunks, whose activations it holds at once.

        From the forward task to the last that reads them: the backward task, or that of the parameters.
        """
        last: Work = "W" if self.splits else "B"
        found = []
        for device in range(self.stages):
            held = most = 0
            for row in self.table:
                task = row[device]
                held += task is not None and task.work == "F"
                most = max(most, held)
                held -= task is not None and task.work == last
            found.append(most)
        return tuple(found)

    def check(self) -> None:
        """Look whether the table is a schedule.

        Each task stands in it once, on the device that has its chunk, after those whose results it reads.

        Raises:
            ScheduleError: it is none; the message names a task.
        """
        tasks = [
            (tick, device, task)
            for tick, row in enumerate(self.table)
            for device, task in enumerate(row)
            if task
        ]
        for _, device, task in tasks:
            if task.chunk % self.stages != device:
                raise ScheduleError(f"{task} of chunk {task.chunk} stands on device {device}")
        works: tuple[Work, ...] = ("F", "B", "W") if self.splits else ("F", "B")
        wanted = {
            Task(work, m, chunk)
            for work in works
            for m in range(self.microbatches)
            for chunk in range(self.chunks)
        }
        if len(tasks) != len(self.when) or set(self.when) != wanted:
            twice = len(tasks) - len(self.when)
            missing = sorted(f"{task} of chunk {task.chunk}" for task in wanted - set(self.when))
            raise ScheduleError(
                f"{twice} tasks stand in it twice; missing are {', '.join(missing) or 'none'}"
            )
        for task, tick in self.when.items():
            for before in reads(task, self.chunks):
                if self.when[before] >= tick:
                    raise ScheduleError(
                        f"{task} of chunk {task.chunk} comes before {before} of {before.chunk}"
                    )

    def seconds(
        self, forward: float, backward: float, weights: float = 0.0, *, together: bool = True
    ) -> float:
        """How long it takes where tasks take these times.

        Args:
            forward: seconds of an F.
            backward: of a B; of the inputs alone where the schedule splits it.
            weights: of a W.
            together: whether each tick lasts until its longest task ends, as in one program for all devices;
                otherwise a task begins when its device is free and what it reads is there.
        """
        cost = {"F": forward, "B": backward, "W": weights}
        if together:
            return sum(max((cost[task.work] for task in row if task), default=0.0) for row in self.table)
        free = [0.0] * self.stages
        done: dict[Task, float] = {}
        for row in self.table:
            for device, task in enumerate(row):
                if task is not None:
                    ready = [free[device], *(done[before] for before in reads(task, self.chunks))]
                    done[task] = free[device] = max(ready) + cost[task.work]
        return max(free)

    def __str__(self) -> str:
        """The table as a drawing: a line a device, a column a tick; chunks beyond the first as letters."""
        live = " ".join(map(str, self.live))
        head = (
            f"{self.name}: {self.stages} stages, {self.microbatches} microbatches"
            + (f", {self.virtual} chunks each" if self.virtual > 1 else "")
            + f", bubble {100 * self.bubble:.1f} %, live {live}"
        )
        cells = [[self._cell(task) for task in row] for row in self.table]
        width = max((len(cell) for row in cells for cell in row), default=1)
        lines = [
            f"{device} | " + " ".join(row[device].ljust(width) for row in cells).rstrip()
            for device in range(self.stages)
        ]
        return "\n".join([head, *lines])

    def _cell(self, task: Task | None) -> str:
        if task is None:
            return "."
        layer = task.chunk // self.stages
        return str(task) + (chr(ord("a") + layer % 26) if self.virtual > 1 else "")


def reads(task: Task, chunks: int) -> list[Task]:
    """The tasks whose results a task reads."""
    if task.work == "F":
        return [Task("F", task.microbatch, task.chunk - 1)] if task.chunk else []
    if task.work == "W":
        return [Task("B", task.microbatch, task.chunk)]
    after = [Task("B", task.microbatch, task.chunk + 1)] if task.chunk < chunks - 1 else []
    return [Task("F", task.microbatch, task.chunk), *after]


def schedule(name: str, stages: int, microbatches: int, virtual: int = 1) -> Schedule:
    """A schedule by its name, checked.

    - `gpipe`: all forward, then all backward (Huang et al., 2019, arXiv 1811.06965).
    - `1f1b`: PipeDream-Flush (Narayanan et al., 2021, arXiv 2006.09503 and 2104.04473).
    - `eager-1f1b`: forward one stage's round trip earlier (Zhuang et al., 2022, arXiv 2211.05322), so that
      all devices do the same kind of task in each tick.
    - `interleaved`: 1F1B with `virtual` chunks on each device (Narayanan et al., 2021, arXiv 2104.04473).
    - `zb-h1`: zero bubble with the memory of 1F1B (Qi et al., 2024, arXiv 2401.10241).

    Args:
        name: one of these.
        stages: devices along the pipeline, at least 1.
        microbatches: at least 1; of `interleaved` a multiple of the stages.
        virtual: chunks on each device; more than 1 with `interleaved` alone.

    Raises:
        ValueError: an unknown name, or numbers that do not go together.

    Example:
        >>> schedule("gpipe", 4, 8).bubble == 3 / 11
        True
    """
    if name not in NAMES:
        raise ValueError(f"no schedule is called {name!r}; there are {', '.join(NAMES)}")
    if stages < 1 or microbatches < 1 or virtual < 1:
        raise ValueError(
            "a pipeline has at least 1 stage, microbatch and chunk, "
            f"not {stages}, {microbatches} and {virtual}"
        )
    if virtual > 1 and name != "interleaved":
        raise ValueError(
            f"{name} has one chunk on each device; schedule='interleaved' takes virtual={virtual}"
        )
    if name == "interleaved" and microbatches % stages:
        more = -(-microbatches // stages) * stages
        raise ValueError(
            f"interleaved wants microbatches in multiples of the {stages} stages, not {microbatches}; "
            f"{more} would do"
        )
    rows = _TABLES[name](stages, microbatches, virtual)
    table = tuple(tuple(None if cell is None else Task(*cell) for cell in row) for row in rows)
    found = Schedule(name, stages, microbatches, virtual, table)
    found.check()
    return found


def _listed(order: Callable[[int, int, int, int], Order]) -> Callable[[int, int, int], Sequence[orders.Row]]:
    def table(stages: int, microbatches: int, virtual: int) -> Sequence[orders.Row]:
        return orders.in_order([order(s, stages, microbatches, virtual) for s in range(stages)])

    return table


_TABLES: Final[Mapping[str, Callable[[int, int, int], Sequence[orders.Row]]]] = {
    "gpipe": _listed(orders.gpipe),
    "1f1b": _listed(orders.one_forward_one_backward),
    "eager-1f1b": orders.eager,
    "interleaved": _listed(orders.interleaved),
    "zb-h1": _listed(orders.zero_bubble),
}


def bubble(name: str, stages: int, microbatches: int, virtual: int = 1) -> float:
    """The bubble by the formulas of the papers, all tasks taking the same time.

    `(S - 1) / (M + S - 1)`; interleaved `(S - 1) / (V M + S - 1)`; `zb-h1` `(S - 1) / (3 M + S - 1)`: of the
    `(S - 1) (F + B + W)` of 1F1B it leaves `(S - 1) (F + B - W)`. That holds for `M` of at least `S`; fewer
    microbatches take `2 (S + M) - 1` ticks.

    Example:
        >>> bubble("interleaved", 4, 8, 2) == 3 / 19
        True
    """
    if name == "zb-h1":
        work = 3 * microbatches
        return 1 - work / max(work + stages - 1, 2 * (stages + microbatches) - 1)
    work = virtual * microbatches
    return (stages - 1) / (work + stages - 1)


def live(name: str, stages: int, microbatches: int, virtual: int = 1) -> tuple[int, ...]:
    """The bound on what each device holds, by the formulas: in microbatches, of each of its chunks.

    `M` for GPipe, `S - s` for 1F1B, `2 (S - s) - 1` for eager 1F1B, `2 (S - s) + (V - 1) S - 1` interleaved,
    `S` for `zb-h1`; never more than all.

    Example:
        >>> live("1f1b", 4, 8)
        (4, 3, 2, 1)
    """
    most = virtual * microbatches
    chunks_ahead = 2 * stages + (virtual - 1) * stages - 1
    ahead, each = {
        "gpipe": (most, 0),
        "1f1b": (stages, 1),
        "eager-1f1b": (2 * stages - 1, 2),
        "interleaved": (chunks_ahead, 2) if virtual > 1 else (stages, 1),
        "zb-h1": (stages, 0),
    }[name]
    return tuple(min(most, ahead - each * s) for s in range(stages))
