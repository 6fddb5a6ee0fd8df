"""Which layouts are the best: those of the search, of the search with overlap, or of a preset."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from lepton_jax.parallel.opened import agrees
from lepton_jax.parallel.prediction.walk import FAR
from lepton_jax.parallel.solver.building import build
from lepton_jax.parallel.solver.charges import SPARE, keep_shared
from lepton_jax.parallel.solver.fitting import Fitting, Task
from lepton_jax.parallel.solver.flat import flatten
from lepton_jax.parallel.solver.model import Model
from lepton_jax.parallel.solver.objective import BYTES, TIME, Objective
from lepton_jax.parallel.solver.overlap import hideable, waited_shares
from lepton_jax.parallel.solver.rivals import presets
from lepton_jax.parallel.solver.search import Search, search
from lepton_jax.parallel.solver.solution import Candidate, Solution, Status

_OVERLAPS: Final = 3
"""How often the search is repeated with hidden communication counted less."""
_WAITED: Final = 0.05
"""Where no more of a step than this is waited for, fewer bytes are not looked for."""
_ALIKE: Final = 0.002
"""Layouts of which one takes no more than this longer than the other are as fast."""
_FEW: Final = 4
"""Candidates of which a solution tells."""
OVERLAPPED: Final = "auto, overlapped"
TOGETHER: Final = "auto, sums together"
FEWER: Final = "auto, fewer bytes"
BY_TIME: Final = "auto by time"
_TAKEN: Final[Mapping[str, Status]] = MappingProxyType(
    {OVERLAPPED: "overlap", TOGETHER: "sums", FEWER: "bytes", BY_TIME: "time"}
)
"""What a solution says where its layouts are these, instead of those of the first search."""


@dataclass(eq=False)
class _Outcome:
    """What one search found, beside what it is compared with.

    Attributes:
        fitting: the search.
        found: its labels.
        own: these labels' layouts.
        others: what else there is.
        best: of all of them.
        pieces: into how many parts the batch is cut for it.
        objective: what the labels cost.
    """

    fitting: Fitting
    found: Search
    own: Candidate
    others: Sequence[Candidate]
    best: Candidate
    pieces: int
    objective: float

    @property
    def whole(self) -> list[Candidate]:
        """The candidates for a batch that is not cut."""
        return [*([self.own] if self.fitting.pieces == 1 else []), *self.others]


class Contest:
    """The candidates of one program on one mesh.

    Args:
        task: what is laid out.
        seconds: after which the searches take the best found so far.
    """

    def __init__(self, task: Task, seconds: float) -> None:
        self.task = task
        self.start, self.seconds = time.monotonic(), seconds
        graph = task.graph
        far = FAR if task.mesh.chip.rates.platform == "tpu" else None
        self.flat = flatten(graph, task.roles.returned.items(), far)
        self.hidden = hideable(graph, self.flat, task.mesh)
        self.rivals = list[Candidate]()

    def _model(self, objective: Objective) -> Model:
        number, task = self.flat.number, self.task
        pins = {number(v): layout for v, layout in task.pins.items()}
        opened = {number(v): entries for v, entries in task.opened.items()}
        held = [number(v) for v in task.graph.inputs]
        return build(self.flat, task.mesh, pins, held, self.hidden, opened, objective)

    def by_time(self, beat: float = math.inf) -> Solution:
        """The fastest that is found.

        Raises:
            CannotWin: no layouts of the model take less than `beat` seconds.
        """
        return self._solution(self._or_fewer(self._fastest(self.start + self.seconds, beat)), TIME)

    def _fastest(self, end: float, beat: float = math.inf) -> _Outcome:
        fitting = Fitting(self.task, self._model(TIME), self._rank, end)
        fitting.check(beat)
        found, own = fitting.run()
        objective = fitting.model.problem.value(found.labels)
        task = self.task
        rivals = presets(task.graph, task.roles, task.mesh, task.pins, task.donated)
        self.rivals = [each for each in rivals if self._keeps(each)]
        others = [*self.rivals, *self._overlapped(fitting, found, own), *self._together(fitting, found)]
        return _Outcome(fitting, found, own, others, *self._best(fitting, own, others), objective)

    def by_bytes(self) -> Solution:
        """What sends the fewest bytes and shares the arithmetic as well as the fastest."""
        first = self._fastest(self.start + self.seconds / 2)
        fitting, found, own = self._fewest(first)
        others = [each if each in self.rivals else replace(each, name=BY_TIME) for each in first.whole]
        others += self._together(fitting, found)
        objective = fitting.model.problem.value(found.labels)
        best, pieces = self._best(fitting, own, others)
        solution = self._solution(_Outcome(fitting, found, own, others, best, pieces, objective), BYTES)
        fast = min([first.best, *([own] if fitting.pieces == 1 else [])], key=self._rank)
        spent = f"{fast.sent / 1e6:.4g} MB sent, {fast.predicted.seconds * 1e3:.4g} ms predicted"
        return replace(solution, notes=(f"the fastest layouts: {spent}", *solution.notes))

    def _fewest(self, first: _Outcome) -> tuple[Fitting, Search, Candidate]:
        """What a search by bytes finds that shares the arithmetic as well as the best of the first."""
        most = (1 + SPARE) * first.best.predicted.flops

        def rank(each: Candidate) -> tuple[float, ...]:
            missing, cost = self._rank(each, BYTES)
            return missing, float(each.predicted.flops > most), cost, self._rank(each)[1]

        fitting = Fitting(self.task, self._model(BYTES), rank, self.start + self.seconds)
        keep_shared(fitting.model, first.best.assignment)
        found, own = fitting.run(first.found.labels, fitting.model.nearest(first.best.assignment))
        return fitting, found, own

    def _or_fewer(self, first: _Outcome) -> _Outcome:
        """The fastest, after layouts with fewer bytes were looked at too.

        What a search knows of a time is a sum over operations and collectives, each alone; of layouts
        that are as good by that it finds any. `predict` may say that those with fewer bytes are faster.
        """
        waited = first.best.predicted
        if first.pieces > 1 or first.fitting.left < 0.1 or waited.exposed <= _WAITED * waited.seconds:
            return first
        fitting, _, own = self._fewest(first)
        if fitting.pieces > 1:
            return first
        others = [*first.others, replace(own, name=FEWER)]
        return replace(first, others=others, best=self._best(first.fitting, first.own, others)[0])

    def _best(self, fitting: Fitting, own: Candidate, others: Sequence[Candidate]) -> tuple[Candidate, int]:
        """The best of what was found, and into how many parts the batch is cut for it."""
        fitting_whole = [each for each in others if each.peak <= self.task.memory]
        if fitting.pieces == 1:
            return self._lightest(fitting, [own, *others]), 1
        if fitting_whole:  # a whole batch is better than one in parts
            return self._lightest(fitting, fitting_whole), 1
        return own, fitting.pieces

    def _lightest(self, fitting: Fitting, candidates: Sequence[Candidate]) -> Candidate:
        """The best; where time counts, of those that are about as fast the one that sends the least."""
        best = min(candidates, key=fitting.rank)
        if fitting.model.objective.byte:
            return best
        missing, cost = self._rank(best)
        alike = [each for each in candidates if self._rank(each) <= (missing, (1.0 + _ALIKE) * cost)]
        return min(alike, key=lambda each: (float(f"{each.sent:.6g}"), self._rank(each)))

    def _solution(self, outcome: _Outcome, objective: Objective) -> Solution:
        best, fitting = outcome.best, outcome.fitting
        bound = min(fitting.bound, outcome.objective)
        missing = max(0, math.ceil(best.peak - self.task.memory))
        gap = 1.0 - bound / max(outcome.objective, 1e-30)
        return Solution(
            best.assignment,
            outcome.objective,
            bound,
            "greedy" if missing else self._status(best, outcome.found, gap),
            best.predicted.seconds,
            outcome.pieces,
            missing,
            {each.name: objective.plain(each.predicted) for each in self.rivals},
            tuple(self._notes(outcome.pieces, missing)),
            self._few(outcome),
            objective,
            best.sent,
        )

    def _keeps(self, each: Candidate) -> bool:
        """Whether the dimensions that are pinned lie so."""
        pinned = self.task.opened.items()
        return all(agrees(each.assignment[v].complete(), entries) for v, entries in pinned)

    def _status(self, best: Candidate, found: Search, gap: float) -> Status:
        if best.name != "auto":
            return _TAKEN.get(best.name, "preset")
        return "optimal" if gap <= self.task.gap else "greedy" if found.finished else "time limit"

    def _few(self, outcome: _Outcome) -> tuple[Candidate, ...]:
        """The best few, each layout once, the one taken first."""
        kept = [outcome.best]
        whole = [] if outcome.pieces > 1 else sorted(outcome.whole, key=outcome.fitting.rank)
        for each in whole:
            if all(each.assignment != other.assignment for other in kept):
                kept.append(each)
        return tuple(kept[:_FEW])

    def _overlapped(self, fitting: Fitting, found: Search, own: Candidate) -> list[Candidate]:
        """Layouts found with hidden communication counted as much as of the last ones is waited for.

        The search begins with what was found and with the best preset.
        """
        model = fitting.model
        soft, kept, seen = model.soft, list[Candidate](), {tuple(found.labels)}
        if fitting.pieces > 1 or not any(soft.parts.values()):
            return []
        last, tried = own, [found.labels]
        if self.rivals:
            best = min(self.rivals, key=self._rank)
            last, tried = min(own, best, key=self._rank), [*tried, model.nearest(best.assignment)]
        for _ in range(_OVERLAPS):
            shares = waited_shares(last.predicted)
            if shares.near(soft.shares) or fitting.left < 0.1:
                break
            soft.weigh(shares)
            again = search(model.problem, fitting.inner, tried, fitting.left * 0.5, self.task.gap)
            if tuple(again.labels) in seen:
                break
            seen.add(tuple(again.labels))
            tried = [again.labels, *tried]
            last = fitting.candidate(again.labels, OVERLAPPED)
            kept.append(last)
        return kept

    def _together(self, fitting: Fitting, found: Search) -> list[Candidate]:
        """Layouts found with sums that are completed together counted so."""
        soft = fitting.model.soft
        if fitting.pieces > 1 or len(soft.joined) < 2 or fitting.left < 0.1:
            return []
        with soft.together():
            again = search(
                fitting.model.problem, fitting.inner, [found.labels], fitting.left * 0.5, self.task.gap
            )
        return [] if again.labels == found.labels else [fitting.candidate(again.labels, TOGETHER)]

    def _rank(self, each: Candidate, objective: Objective = TIME) -> tuple[float, float]:
        """What fits first, then what costs less; costs that differ by rounding are equal."""
        return max(each.peak - self.task.memory, 0.0), float(f"{objective.cost(each.predicted):.6g}")

    def _notes(self, pieces: int, missing: int) -> list[str]:
        found = []
        if pieces > 1:
            found.append(f"the batch is to be cut into {pieces} micro-batches, or it does not fit")
        if missing:
            found.append(
                f"{missing} bytes per device more are needed than the {self.task.memory} there are: "
                "take more devices, a smaller batch, or recompute activations (jax.checkpoint)"
            )
        return found
