"""Communication that hides behind arithmetic: what of a problem's costs it is, and counting less of it.

What is gathered of the inputs can be gathered ahead of who reads it, and what only outputs wait for can be
sent while the rest is computed (`prediction.times`). How much of that is waited for all the same depends on
all choices together; so a search supposes a share, `predict` says what it is, and the next search takes that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from lepton_jax.ir.graph import Graph
from lepton_jax.ir.regions import slots
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction import Prediction
from lepton_jax.parallel.prediction.walk import RENAMES, _Walk
from lepton_jax.parallel.solver.flat import Flat
from lepton_jax.parallel.solver.problem import Floats, Problem

HIDDEN: Final = 0.01
"""What a second of hidden communication counts against one that is waited for."""


def hideable(graph: Graph, flat: Flat, mesh: MeshSpec) -> tuple[frozenset[int], frozenset[int]]:
    """The values that are there from the start, and those that only outputs wait for; copies of them too.

    Args:
        graph: the program.
        flat: of it.
        mesh: the mesh.
    """
    given = {flat.numbers[value] for value in graph.inputs}
    _follow(graph, flat, given)
    outlook = _Walk({}, mesh)
    late = {number for value, number in flat.numbers.items() if outlook.is_returned(value)}
    for op in flat.ops:
        if op.node is None and op.operands[0] in given:
            given.update(op.results)
        if op.node is None and op.results[0] in late:
            late.update(op.operands)
    return frozenset(given), frozenset(late)


def _follow(graph: Graph, flat: Flat, given: set[int]) -> None:
    """Add what is renamed of what is given, and what loops are given of it."""
    for node in graph:
        for slot in slots(node) if node.regions else ():
            if slot.operand is None or slot.kind in ("carry", "opaque"):
                continue
            if flat.numbers.get(node.operands[slot.operand]) in given:
                given.update(flat.number(node.regions[r].inputs[i]) for r, i in slot.inputs)
        for region in node.regions:
            _follow(region, flat, given)
        if node.op in RENAMES and flat.numbers.get(node.operands[0]) in given:
            given.update(flat.number(value) for value in node.results)


@dataclass(frozen=True)
class Shares:
    """What of the communication that can be hidden is waited for all the same.

    Attributes:
        ahead: of what is gathered of the inputs.
        late: of what only outputs wait for.
    """

    ahead: float = 1.0
    late: float = 1.0

    def near(self, other: Shares) -> bool:
        """Whether they differ too little to search again."""
        return max(abs(self.ahead - other.ahead), abs(self.late - other.late)) < 0.02


class Soft:
    """The costs of a problem that hide behind arithmetic, and those that are paid once for several sums.

    Args:
        problem: of which they are a part, counted in full.

    Attributes:
        joined: what completing sums costs however little is sent, where only outputs wait for them: those of
            a kind are completed together.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.shares = Shares()
        self.parts: dict[bool, list[tuple[int, int, Floats]]] = {True: [], False: []}
        self.joined: list[tuple[int, int, Floats]] = []
        self._finite: dict[int, tuple[Floats, Floats]] = {}

    def note(self, i: int, j: int, table: Floats, *, ahead: bool) -> None:
        """Note that this of what pairs of labels of two variables cost can be hidden."""
        known = self._finite.get(id(table))
        if known is None:
            known = self._finite[id(table)] = (table, np.where(np.isfinite(table), table, 0.0))
        self.parts[ahead].append((i, j, known[1]))

    def weigh(self, shares: Shares) -> None:
        """Let what can be hidden count these shares of its seconds."""
        before, self.shares = self.shares, shares
        self._add(self.parts[True], shares.ahead - before.ahead)
        self._add(self.parts[False], shares.late - before.late)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let each sum that is completed together with others count its part of what that costs."""
        spared = 1.0 - 1.0 / max(len(self.joined), 1)
        self._add(self.joined, -spared * self.shares.late)
        yield
        self._add(self.joined, spared * self.shares.late)

    def _add(self, parts: Sequence[tuple[int, int, Floats]], more: float) -> None:
        if not parts or more == 0.0:
            return
        own = Problem([np.zeros(len(costs)) for costs in self.problem.costs])
        for i, j, table in parts:
            if i == j:
                own.costs[i] = own.costs[i] + np.diagonal(table)
            else:
                own.add(i, j, table)
        for i, costs in enumerate(own.costs):
            self.problem.costs[i] = self.problem.costs[i] + more * costs
        sums: dict[tuple[int, int], Floats] = {}  # equal sums are one array: what is found out of one holds
        for key, table in own.pairs.items():
            known = self.problem.pairs[key]
            both = id(known), id(table)
            if both not in sums:
                sums[both] = known + more * table
            self.problem.pairs[key] = sums[both]


def waited_shares(predicted: Prediction) -> Shares:
    """What of the communication that can be hidden is waited for; `HIDDEN` at the least.

    What outputs wait for is the first to be exposed: it comes last.
    """
    mesh = predicted.mesh
    ahead = late = 0.0
    for move in predicted.moves:
        spent = move.collective.seconds(mesh) * move.collective.times
        ahead += spent * move.ahead
        late += spent * (move.after and not move.ahead)
    waited = max(0.0, predicted.exposed - (predicted.communication - ahead - late))
    return Shares(_part(waited - late, ahead), _part(waited, late))


def _part(seconds: float, of: float) -> float:
    return min(1.0, max(HIDDEN, seconds / of)) if of > 0.0 else HIDDEN
