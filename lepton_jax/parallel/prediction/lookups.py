"""Look-ups of rows in tables on TPUs: what is laid out for them, and what waits behind them.

XLA for chips with sparse cores gives them what gathers rows of tables, one look-up after the other,
beside all else. While one runs, the table of the next is laid out, and what was found before is brought
into its place. XLA schedules a program from its end: what is done with rows that were found stands beside
the last look-ups, as much beside each as it hides, and what the first ones found waits until then. (So it
is in the buffer assignments of programs with 4, 8 and 16 tables.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from lepton_jax.ir.graph import Node
from lepton_jax.parallel.prediction.sizes import LANES, row_bytes
from lepton_jax.parallel.prediction.span import Span
from lepton_jax.parallel.prediction.steps import Steps

SPARSE: Final = frozenset({"v5p"})
"""Chips with sparse cores, of those whose programs were looked at."""

STARTS: Final = 10e-6
"""Seconds that XLA takes a look-up to need besides moving rows."""
RANDOM: Final = 2
"""How much longer it takes rows to move than bytes that lie together."""
SENT: Final = 5e-6
"""Seconds that it takes what was found to need on its way to other devices."""


@dataclass(slots=True)
class Lookup:
    """A look-up by a sparse core.

    Attributes:
        step: when it begins.
        table: the table laid out for it; None where it is read as it is.
        found: its rows, each in whole lanes; None where they fill them.
        rows: the rows without gaps.
        bytes: of the rows, in whole lanes.
        sent: whether they are sent to other devices.
    """

    step: int
    table: Span | None
    found: Span | None
    rows: Span
    bytes: int
    sent: bool


class Lookups:
    """The look-ups of a program, in their order."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._speed = steps.mesh.chip.rates.bytes_per_second
        self._all: list[Lookup] = []

    def add(self, node: Node, step: int, rows: Span, ids: tuple[int, ...], brought: bool) -> None:
        """One more look-up, in a table that is there from the start.

        Rows are gathered from a copy of the table whose rows take whole lanes. It is made while the indices
        are brought, if they are; for a sparse core while that is at work on the look-up before.

        Args:
            node: the gather.
            step: when it runs.
            rows: what it finds.
            ids: of the indices, how many one device has along each dimension.
            brought: whether indices come from other devices.
        """
        steps = self._steps
        table, sparse = node.operands[0], steps.mesh.chip.name in SPARSE
        size = row_bytes(table, steps.layout(table), steps.mesh)
        laid = None
        if size > steps.size(table):
            laid = steps.early(size)
            laid.born = laid.born if brought and not sparse else step
        if not sparse:
            return
        *count, lanes = steps.layout(table).local_shape(table.shape, steps.mesh)
        bytes = math.prod(ids) * (size // max(math.prod(count), 1))
        found = steps.span(bytes) if lanes % LANES else None
        for each in (laid, found):
            if each is not None:
                each.main = True
                each.born, each.reads = step, [step]
        sent = any(move.value is node.results[0] for move in steps.walked.moves)
        self._all.append(Lookup(step, laid, found, rows, bytes, sent))

    def settle(self) -> None:
        """Say when tables are laid out and when what was found is brought into its place."""
        for before, each in pairwise(self._all):
            if each.table is not None:
                each.table.born = before.step
        waiting = len(self._all) - 2
        for i in range(len(self._all) - 1, 0, -1):
            hidden = self._seconds(self._all[i]) - (self._laying(i + 1) if i + 1 < len(self._all) else 0.0)
            waiting = min(waiting, i - 1)
            while waiting >= 0 and hidden > 0:
                each = self._all[waiting]
                hidden -= each.bytes / self._speed + SENT * each.sent
                _wait(each, self._all[i].step - 1)
                waiting -= 1

    def _laying(self, which: int) -> float:
        """How long it takes to lay out the table of a look-up."""
        table = self._all[which].table
        return 0.0 if table is None else table.bytes / self._speed

    def _seconds(self, lookup: Lookup) -> float:
        """How long a look-up takes: rows are read and written."""
        return STARTS + RANDOM * 2 * lookup.bytes / self._speed


def _wait(lookup: Lookup, step: int) -> None:
    """What was found is brought into its place in a step."""
    if lookup.found is not None and step > lookup.step:
        lookup.found.reads = [step]
        lookup.rows.born = max(lookup.rows.born, step)
