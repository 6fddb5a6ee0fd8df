"""Searching until layouts fit: what the partitioner does otherwise is charged, what is in memory limited."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.opened import Opened
from lepton_jax.parallel.prediction import Prediction, predict
from lepton_jax.parallel.roles import Roles
from lepton_jax.parallel.solver.charges import corrected, taken_apart
from lepton_jax.parallel.solver.dual import Dual
from lepton_jax.parallel.solver.limits import limit
from lepton_jax.parallel.solver.model import Model
from lepton_jax.parallel.solver.problem import Labels, Row
from lepton_jax.parallel.solver.search import Search, search
from lepton_jax.parallel.solver.solution import Candidate

_ROUNDS: Final = 10
_MESSAGES: Final = 15
"""Sweeps after which a bound says whether a search is worth its time."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be laid out, and within which limits.

    Attributes:
        graph: the program.
        roles: of its inputs.
        mesh: the mesh.
        memory: bytes per device.
        pins: layouts that values must have.
        opened: values of which some dimensions are pinned.
        gap: relative to the bound, at which to stop.
        donated: positions of the inputs whose memory outputs may take.
    """

    graph: Graph
    roles: Roles
    mesh: MeshSpec
    memory: int
    pins: Mapping[Value, Layout]
    opened: Mapping[Value, Opened]
    gap: float
    donated: tuple[int, ...]

    @property
    def reused(self) -> set[Value]:
        """The outputs that take the memory of inputs."""
        outputs = self.graph.outputs
        return {outputs[o] for i, o in self.roles.returned.items() if i in self.donated}


class CannotWin(Exception):
    """The search cannot find layouts that take as little as was asked for.

    Attributes:
        bound: seconds, by the model of the search; no layouts of the model take less.
    """

    def __init__(self, bound: float) -> None:
        super().__init__(f"at least {bound:.4g} seconds, nothing hidden")
        self.bound = bound


class Fitting:
    """A search on one model.

    Args:
        task: what is laid out.
        model: of it.
        rank: what is better, by candidate: the lower.
        end: when to stop, by `time.monotonic`.

    Attributes:
        pieces: into how many parts the batch is cut.
        bound: below which no choice costs.
    """

    def __init__(
        self, task: Task, model: Model, rank: Callable[[Candidate], tuple[float, ...]], end: float
    ) -> None:
        self.task, self.model, self.rank, self.end = task, model, rank, end
        self.inner: Collection[int] = [variable for _, variable, _ in model.ways]
        self.pieces = 1
        self.bound = 0.0
        self._charged = False

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.end - time.monotonic()

    def check(self, beat: float) -> None:
        """Find out by a few messages whether less than this can be found at all.

        Raises:
            CannotWin: it cannot.
        """
        if math.isinf(beat):
            return
        problem = self.model.problem
        dual = Dual(problem, range(len(problem.costs)), 20.0 * beat)
        dual.run(max(self.left, 0.0) * 0.2, beat, rounds=_MESSAGES)
        if dual.bound > beat:
            raise CannotWin(dual.bound)

    def run(self, *starts: Labels) -> tuple[Search, Candidate]:
        """Search, with the batch in as few parts as the memory demands."""
        found, own = self._within_memory(*starts)
        roles, inputs = self.task.roles, self.task.graph.inputs
        largest = max((inputs[i].shape[0] for i in roles.batch), default=1)
        while own.peak > self.task.memory and self.pieces * 2 <= largest:
            self.pieces *= 2
            if largest % self.pieces:
                break
            self.model.problem.rows.clear()
            self.bound = 0.0  # that was for another limit
            found, own = self._within_memory(found.labels)
        return found, own

    def _within_memory(self, *starts: Labels) -> tuple[Search, Candidate]:
        """Search, charge what the partitioner does otherwise, limit what is in memory, until all is well."""
        problem = self.model.problem
        tried = [[0] * len(problem.costs), *starts]
        best: tuple[Search, Candidate] | None = None
        for _ in range(_ROUNDS):
            left = self.left
            if best is not None and left < 0.1:
                break
            found = search(problem, self.inner, tried, max(left * 0.6, 0.1), self.task.gap)
            if not self._charged:
                self.bound = max(self.bound, found.bound)
            own = self.candidate(found.labels)
            if best is None or self.rank(own) < self.rank(best[1]):
                best = found, own
            tried = [found.labels, *tried]
            if own.peak > self.task.memory:
                if not self._limit(found.labels, own):
                    break
            elif corrected(self.model, found.labels) + taken_apart(self.model, found.labels, own.predicted):
                self._charged = True
            else:
                break
        assert best is not None
        return best

    def candidate(self, labels: Labels, name: str = "auto") -> Candidate:
        """What labels mean, and what that costs."""
        assignment = self.model.assignment(labels)
        predicted = predict(self.task.graph, assignment, self.task.mesh, self.task.donated)
        peak = float(predicted.peak)
        if self.pieces > 1:
            whole, cut = (self._row(predicted, pieces) for pieces in (1, self.pieces))
            peak += cut.used(labels) - whole.used(labels)
        return Candidate(name, assignment, predicted, peak)

    def _row(self, predicted: Prediction, pieces: int) -> Row:
        """The limit on what is in memory when most is."""
        task = self.task
        return limit(task.graph, predicted.alive, self.model, task.memory, task.reused, pieces)

    def _limit(self, labels: Labels, own: Candidate) -> bool:
        """Add the limit that these labels exceed; returns whether any labels can keep it."""
        row = self._row(own.predicted, self.pieces)
        row.most -= max(own.peak - row.used(labels), 0.0)  # what the row does not see: copies
        if row.least() > row.most:
            return False
        self.model.problem.rows.append(row)
        return True
