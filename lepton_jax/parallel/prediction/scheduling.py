"""The order in which XLA runs a program of products without batches, where that is not the program's own.

XLA's memory scheduler tries a list scheduler and two orders depth first, and takes the one that needs least
memory, of equals the list scheduler's. That runs, of all that may run, what frees most less what it makes, of
equals what more others need, then what could last (`hlo_memory_scheduler` in OpenXLA's sources). So weights
are all gathered in the beginning where products make more, and gradients come where they free most. The other
orders are taken to be the program's own.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from lepton_jax.parallel.prediction.elements import FUSED
from lepton_jax.parallel.prediction.span import Span
from lepton_jax.parallel.prediction.steps import Steps
from lepton_jax.parallel.prediction.windows import is_plain

AT_ONCE: Final = frozenset({"v5p"})
"""Chips that gather while nothing else runs. Programs for others are ordered once more, to hide sending."""
SCALAR: Final = 8
"""What makes so few bytes runs as soon as it can."""
EQUAL: Final = 4096
"""By how many bytes, those of a tile, two orders may differ that are taken to need the same."""


@dataclass(slots=True, eq=False)
class Task:
    """A step of a program, or a gather between two.

    Attributes:
        step: its number; None for a gather.
        makes: the arrays that it writes.
        reads: the arrays that it reads.
        after: the tasks that need what it writes.
    """

    step: int | None
    makes: list[Span] = field(default_factory=list)
    reads: list[Span] = field(default_factory=list)
    after: dict[Task, None] = field(default_factory=dict)


def reorder(program: Steps, gathered: Mapping[Span, Collection[Span]]) -> None:
    """Put the steps of a program into the order of XLA's list scheduler, where that needs no more memory.

    Args:
        program: its steps and arrays; they are changed.
        gathered: of each array that is gathered, what it is gathered from.
    """
    if program.mesh.chip.name not in AT_ONCE or not _is_followed(program):
        return
    tasks = _tasks(program, gathered)
    order = _listed(tasks)
    if _peak(order) <= _peak(tasks) + EQUAL:
        _put(program, order)


def _is_followed(program: Steps) -> bool:
    """Whether a program has products without batches and operations on elements alone.

    With attention XLA takes other orders than found here. Gathers that are sums are one, before all else.
    """
    walked = program.walked
    sent = (move.collective.kind for move in walked.moves if walked.held.get(move.value))
    nodes = (node for node in program.nodes if node is not None)
    return all(kind == "all-gather" for kind in sent) and all(
        is_plain(node) or node.op in FUSED or node.op.startswith("reduce_") for node in nodes
    )


def _tasks(program: Steps, gathered: Mapping[Span, Collection[Span]]) -> list[Task]:
    """What a program does between its beginning and its end, each gather before who first reads it."""
    steps = [Task(step) for step in range(len(program.nodes))]
    gathers = {copy: Task(None) for copy in gathered if copy.reads}
    makers = {span: gathers.get(span) or steps[span.born] for span in program.found}
    readers = [(span, steps[step]) for span in program.found for step in sorted(set(span.reads))]
    readers += [
        (root, gathers[copy]) for copy, roots in gathered.items() if copy in gathers for root in roots
    ]
    for span, maker in makers.items():
        maker.makes.append(span)
    for span, reader in readers:
        if makers[span] is not reader:
            reader.reads.append(span)
            makers[span].after[reader] = None
    ahead: dict[int, list[Task]] = {}
    for copy, gather in gathers.items():
        ahead.setdefault(min(copy.reads), []).append(gather)
    return [task for i, step in enumerate(steps[1:-1], 1) for task in (*ahead.get(i, ()), step)]


class _Ready:
    """The tasks that may run."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._left = Counter(span for task in tasks for span in task.reads)
        self._heap: list[tuple[float, int, int, Task]] = []
        self._turn = count(0, -1)

    def add(self, task: Task) -> None:
        """A task may run, or frees more now if it does: of equals it is the first."""
        made = sum(span.bytes for span in task.makes)
        freed = sum(span.bytes for span in task.reads if self._left[span] == 1 and not span.given)
        grows = -math.inf if task.makes and made <= SCALAR else made - freed
        heapq.heappush(self._heap, (grows, -len(task.after), next(self._turn), task))

    def take(self) -> Task | None:
        """The task that runs next, perhaps one that ran already; None where there is none."""
        return heapq.heappop(self._heap)[-1] if self._heap else None

    def read(self, task: Task) -> set[Span]:
        """The arrays that one task alone has still to read when this one has run."""
        self._left.subtract(task.reads)
        return {span for span in task.reads if self._left[span] == 1}


def _listed(tasks: Sequence[Task]) -> list[Task]:
    """Tasks as the list scheduler orders them."""
    waiting = Counter(after for task in tasks for after in task.after)
    makers = {span: task for task in tasks for span in task.makes}
    ready, order = _Ready(tasks), dict[Task, None]()
    for task in tasks:
        if not waiting[task]:
            ready.add(task)
    while (best := ready.take()) is not None:
        if best in order:
            continue
        order[best] = None
        for span in ready.read(best):
            for other in makers[span].after if span in makers else ():
                if span in other.reads and other not in order and not waiting[other]:
                    ready.add(other)
        for after in best.after:
            waiting[after] -= 1
            if not waiting[after]:
                ready.add(after)
    return list(order)


def _peak(tasks: Iterable[Task]) -> int:
    """The bytes that tasks in an order need besides inputs; outputs stay."""
    order = list(tasks)
    left = Counter(span for task in order for span in task.reads)
    there = most = 0
    for task in order:
        there += sum(span.bytes for span in task.makes)
        most = max(most, there)
        left.subtract(task.reads)
        there -= sum(span.bytes for span in (*task.makes, *task.reads) if not left[span] and not span.given)
    return most


def _put(program: Steps, order: Iterable[Task]) -> None:
    """Number steps anew, in an order."""
    new, last = {0: 0, len(program.nodes) - 1: len(program.nodes) - 1}, 0
    born: dict[Span, int] = {}
    for task in order:
        if task.step is None:
            born |= dict.fromkeys(task.makes, last)
        else:
            last += 1
            new[task.step] = last
    nodes = list(program.nodes)
    for step, place in new.items():
        program.nodes[place] = nodes[step]
    for span in program.found:
        span.born = born[span] if span in born else new[span.born]
        span.reads = [new[step] for step in span.reads]
