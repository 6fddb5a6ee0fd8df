"""The tables behind the schedules: orders of tasks for each device, and when they can run.

A task is a tuple here: (work, microbatch, chunk). Every task takes one tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Work = Literal["F", "B", "W"]
Cell = tuple[Work, int, int]
Order = list[Cell]
Row = tuple[Cell | None, ...]


def gpipe(stage: int, stages: int, microbatches: int, virtual: int) -> Order:
    """All forward, then all backward, of the same microbatch first."""
    forward: Order = [("F", m, stage) for m in range(microbatches)]
    return [*forward, *(("B", m, stage) for m in range(microbatches))]


def one_forward_one_backward(stage: int, stages: int, microbatches: int, virtual: int) -> Order:
    """As many forward as stages follow, then one forward and one backward in turn."""
    return _in_turn(
        [("F", m, stage) for m in range(microbatches)],
        [("B", m, stage) for m in range(microbatches)],
        stages - 1 - stage,
    )


def interleaved(stage: int, stages: int, microbatches: int, virtual: int) -> Order:
    """Megatron's order: as many microbatches as stages go through a chunk, then through the next."""
    forward: Order = []
    backward: Order = []
    for first in range(0, microbatches, stages):
        for layer in range(virtual):
            group = range(first, min(first + stages, microbatches))
            forward += [("F", m, layer * stages + stage) for m in group]
            backward += [("B", m, (virtual - 1 - layer) * stages + stage) for m in group]
    if virtual == 1:
        return _in_turn(forward, backward, stages - 1 - stage)
    return _in_turn(forward, backward, 2 * (stages - 1 - stage) + (virtual - 1) * stages)


def _in_turn(forward: Order, backward: Order, before: int) -> Order:
    """`before` forward tasks, then one forward and one backward in turn, then what is left."""
    first = min(before, len(forward))
    found = forward[:first]
    for i, task in enumerate(forward[first:]):
        found += [task, backward[i]]
    return [*found, *backward[len(forward) - first :]]


def in_order(orders: Sequence[Order]) -> list[Row]:
    """When the tasks of each device run, each as soon as what it reads is there.

    Raises:
        ValueError: the orders wait for one another.
    """
    chunks = 1 + max(chunk for order in orders for _, _, chunk in order)
    left = [list(reversed(order)) for order in orders]
    done: set[Cell] = set()
    table: list[Row] = []
    while any(left):
        row = tuple(each[-1] if each and _ready(each[-1], done, chunks) else None for each in left)
        if not any(row):
            raise ValueError("the devices wait for one another")
        for each, task in zip(left, row, strict=True):
            if task is not None:
                each.pop()
                done.add(task)
        table.append(row)
    return table


def _ready(task: Cell, done: set[Cell], chunks: int) -> bool:
    work, m, chunk = task
    if work == "F":
        return chunk == 0 or ("F", m, chunk - 1) in done
    if work == "W":
        return ("B", m, chunk) in done
    return ("F", m, chunk) in done and (chunk == chunks - 1 or ("B", m, chunk + 1) in done)


def eager(stages: int, microbatches: int, virtual: int) -> list[Row]:
    """Forward in even ticks, backward in odd ones; ticks in which nobody has work are left out."""
    table: list[Row] = []
    for tick in range(microbatches + 2 * (stages - 1)):
        forward: Order = [("F", tick - s, s) for s in range(stages)]
        backward: Order = [("B", tick - 2 * (stages - 1) + s, s) for s in range(stages)]
        for cells in (forward, backward):
            row = tuple(cell if 0 <= cell[1] < microbatches else None for cell in cells)
            if any(row):
                table.append(row)
    return table


def zero_bubble(stage: int, stages: int, microbatches: int, virtual: int) -> Order:
    """1F1B; the parameters' gradients of a stage come as many microbatches late as stages stand before it."""
    first = min(stages - 1 - stage, microbatches)
    found: Order = [("F", m, stage) for m in range(first)]
    late = 0
    for m in range(microbatches):
        if first + m < microbatches:
            found.append(("F", first + m, stage))
        found.append(("B", m, stage))
        if m >= stage:
            found.append(("W", late, stage))
            late += 1
    return [*found, *(("W", m, stage) for m in range(late, microbatches))]
