"""`solve`: the layouts of a program on a mesh that take the least time."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.factors.lookup import kept_factors
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction import Prediction, predict
from lepton_jax.parallel.prediction.walk import FAR
from lepton_jax.parallel.propagation import propagate
from lepton_jax.parallel.roles import Roles
from lepton_jax.parallel.solver.dual import Dual
from lepton_jax.parallel.solver.flat import flatten
from lepton_jax.parallel.solver.limits import limit
from lepton_jax.parallel.solver.model import Opened, agrees, build, corrected
from lepton_jax.parallel.solver.overlap import HIDDEN, hideable, waited_shares
from lepton_jax.parallel.solver.problem import Labels, Row
from lepton_jax.parallel.solver.rivals import presets
from lepton_jax.parallel.solver.search import GAP, Search, search
from lepton_jax.parallel.solver.solution import Candidate, Solution, Status

_ROUNDS: Final = 5
_OVERLAPS: Final = 3
"""How often the search is repeated with hidden communication counted less."""
_FEW: Final = 4
"""Candidates of which a solution tells."""
_MESSAGES: Final = 15
"""Sweeps after which a bound says whether a search is worth its time."""
OVERLAPPED: Final = "auto, overlapped"


def solve(
    graph: Graph,
    roles: Roles,
    mesh: MeshSpec,
    *,
    memory: int | None = None,
    pins: Mapping[Value, Layout] | None = None,
    opened: Mapping[Value, Opened] | None = None,
    seconds: float = 60.0,
    gap: float = GAP,
    donated: Collection[int] = (),
    beat: float = math.inf,
) -> Solution:
    """The layouts of a program on a mesh that take the least time.

    Args:
        graph: with plain calls written into their callers; it is not changed.
        roles: of its inputs; what is returned of a parameter or of state lies as it.
        mesh: axes of one device are not used; with a single device all is whole.
        memory: bytes per device; default: what the mesh's chips have.
        pins: layouts that values must have.
        opened: values of which some dimensions are pinned; the others, None, are free. It is kept where the
            model has such layouts.
        seconds: after which the search takes the best found so far; presets are evaluated besides.
        gap: relative to the bound, at which to stop.
        donated: positions of the inputs whose memory outputs may take.
        beat: seconds by the model of the search; where it cannot find less, it does not search.

    Returns:
        a solution that is never predicted to be slower than the best preset that fits as well, by more than a
            hundredth: of what takes about as long, that is taken which hides less communication.

    Raises:
        ValueError: a pin is for another number of dimensions, names an axis that the mesh does not have, or
            does not divide.
        CannotWin: no layouts of the model take less than `beat` seconds.

    Example:
        >>> import jax
        >>> from lepton_jax.ir import trace
        >>> from lepton_jax.parallel.roles import roles_of
        >>> w, x = (jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((8192, 8192), (4096, 8192)))
        >>> graph = trace(lambda w, x: x @ w, w, x)
        >>> found = solve(graph, roles_of(graph, ["w", "x"]), MeshSpec.of("data=8", chip="v5e"))
        >>> found.status, str(found.assignment[graph.outputs[0]]) != "[-, -]"
        ('optimal', True)
    """
    for value, layout in (pins or {}).items():
        layout.check(value.shape, mesh, "a pinned array")
    limited = mesh.chip.memory if memory is None else memory
    if mesh.devices < 2:
        return _alone(graph, mesh, limited, donated)
    with kept_factors():
        pinned, free = dict(pins or {}), dict(opened or {})
        return _Solve(graph, roles, mesh, limited, pinned, free, seconds, gap, donated).run(beat)


def _alone(graph: Graph, mesh: MeshSpec, memory: int, donated: Collection[int]) -> Solution:
    """One device takes everything whole."""
    assignment = propagate(graph, {value: Layout.whole(value.ndim) for value in graph.inputs}, mesh)
    found = predict(graph, assignment, mesh, tuple(donated))
    missing = max(0, math.ceil(found.peak - memory))
    status: Status = "greedy" if missing else "optimal"
    notes = (f"the mesh {mesh} has one device",)
    return Solution(assignment, found.seconds, found.seconds, status, found.seconds, 1, missing, {}, notes)


class CannotWin(Exception):
    """The search cannot find layouts that take as little as was asked for.

    Attributes:
        bound: seconds, by the model of the search; no layouts of the model take less.
    """

    def __init__(self, bound: float) -> None:
        super().__init__(f"at least {bound:.4g} seconds, nothing hidden")
        self.bound = bound


def cost(each: Candidate) -> float:
    """Seconds, with a little for what is hidden.

    No more is hidden than a step takes, so what costs less is predicted to be slower by this part at most.
    """
    return each.predicted.seconds + HIDDEN * (each.predicted.communication - each.predicted.exposed)


class _Solve:
    def __init__(
        self,
        graph: Graph,
        roles: Roles,
        mesh: MeshSpec,
        memory: int,
        pins: dict[Value, Layout],
        opened: dict[Value, Opened],
        seconds: float,
        gap: float,
        donated: Collection[int],
    ) -> None:
        self.graph, self.roles, self.mesh, self.memory, self.pins = graph, roles, mesh, memory, pins
        self.opened = opened
        self.end = time.monotonic() + seconds
        self.gap = gap
        self.donated = tuple(donated)
        outputs = graph.outputs
        self.reused = {outputs[o] for i, o in roles.returned.items() if i in self.donated}
        far = FAR if mesh.chip.rates.platform == "tpu" else None
        flat = flatten(graph, roles.returned.items(), far)
        self.model = build(
            flat,
            mesh,
            {flat.number(v): layout for v, layout in pins.items()},
            [flat.number(v) for v in graph.inputs],
            hideable(graph, flat, mesh),
            {flat.number(v): entries for v, entries in opened.items()},
        )
        self.inner = [variable for _, variable, _ in self.model.ways]
        self.pieces = 1
        self.bound = 0.0
        self.charged = False

    def keeps(self, each: Candidate) -> bool:
        """Whether the dimensions that are pinned lie so."""
        return all(agrees(each.assignment[v].complete(), entries) for v, entries in self.opened.items())

    def run(self, beat: float = math.inf) -> Solution:
        """The best that is found.

        Raises:
            CannotWin: no layouts of the model take less than `beat` seconds.
        """
        self.check(beat)
        found, own = self.best()
        objective = self.model.problem.value(found.labels)
        rivals = presets(self.graph, self.roles, self.mesh, self.pins, self.donated)
        rivals = [each for each in rivals if self.keeps(each)]
        every = [own, *self.overlapped(found, own, rivals), *rivals]
        fitting = [each for each in every[1:] if each.peak <= self.memory]
        best = min(every, key=self.rank) if self.pieces == 1 else own
        if self.pieces > 1 and fitting:  # a whole batch is better than one in parts
            best, self.pieces = min(fitting, key=self.rank), 1
        bound = min(self.bound, objective)
        missing = max(0, math.ceil(best.peak - self.memory))
        return Solution(
            best.assignment,
            objective,
            bound,
            "greedy" if missing else self.status(best, found, 1.0 - bound / max(objective, 1e-30)),
            best.predicted.seconds,
            self.pieces,
            missing,
            {each.name: each.predicted.seconds for each in rivals},
            tuple(self.notes(best, missing)),
            self.few(best, every),
        )

    def check(self, beat: float) -> None:
        """Find out by a few messages whether less than this can be found at all."""
        if math.isinf(beat):
            return
        dual = Dual(self.model.problem, range(len(self.model.problem.costs)), 20.0 * beat)
        dual.run(max(self.end - time.monotonic(), 0.0) * 0.2, beat, rounds=_MESSAGES)
        if dual.bound > beat:
            raise CannotWin(dual.bound)

    def status(self, best: Candidate, found: Search, gap: float) -> Status:
        if best.name != "auto":
            return "overlap" if best.name == OVERLAPPED else "preset"
        return "optimal" if gap <= self.gap else "greedy" if found.finished else "time limit"

    def few(self, best: Candidate, every: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """The best few, each layout once, the one taken first."""
        kept = [best]
        whole = [] if self.pieces > 1 else sorted(every, key=self.rank)
        for each in whole:
            if all(each.assignment != other.assignment for other in kept):
                kept.append(each)
        return tuple(kept[:_FEW])

    def overlapped(self, found: Search, own: Candidate, rivals: Sequence[Candidate]) -> list[Candidate]:
        """Layouts found with hidden communication counted as much as of the last ones is waited for.

        The search begins with what was found and with the best preset.
        """
        soft, kept, seen = self.model.soft, list[Candidate](), {tuple(found.labels)}
        if self.pieces > 1 or not any(soft.parts.values()):
            return []
        last, tried = own, [found.labels]
        if rivals:
            best = min(rivals, key=self.rank)
            last, tried = min(own, best, key=self.rank), [*tried, self.model.nearest(best.assignment)]
        for _ in range(_OVERLAPS):
            shares = waited_shares(last.predicted)
            left = self.end - time.monotonic()
            if shares.near(soft.shares) or left < 0.1:
                break
            soft.weigh(shares)
            again = search(self.model.problem, self.inner, tried, left * 0.5, self.gap)
            if tuple(again.labels) in seen:
                break
            seen.add(tuple(again.labels))
            tried = [again.labels, *tried]
            last = replace(self.candidate(again.labels), name=OVERLAPPED)
            kept.append(last)
        return kept

    def best(self) -> tuple[Search, Candidate]:
        """Search, with the batch in as few parts as the memory demands."""
        found, own = self.within_memory()
        largest = max((self.graph.inputs[i].shape[0] for i in self.roles.batch), default=1)
        while own.peak > self.memory and self.pieces * 2 <= largest:
            self.pieces *= 2
            if largest % self.pieces:
                break
            self.model.problem.rows.clear()
            self.bound = 0.0  # that was for another limit
            found, own = self.within_memory(found.labels)
        return found, own

    def within_memory(self, *starts: Labels) -> tuple[Search, Candidate]:
        """Search, charge what the partitioner does otherwise, limit what is in memory, until all is well."""
        problem = self.model.problem
        tried = [[0] * len(problem.costs), *starts]
        best: tuple[Search, Candidate] | None = None
        for _ in range(_ROUNDS):
            left = self.end - time.monotonic()
            if best is not None and left < 0.1:
                break
            found = search(problem, self.inner, tried, max(left * 0.6, 0.1), self.gap)
            if not self.charged:
                self.bound = max(self.bound, found.bound)
            own = self.candidate(found.labels)
            if best is None or self.rank(own) < self.rank(best[1]):
                best = found, own
            tried = [found.labels, *tried]
            if own.peak > self.memory:
                if not self.limit(found.labels, own):
                    break
            elif corrected(self.model, found.labels):
                self.charged = True
            else:
                break
        assert best is not None
        return best

    def rank(self, each: Candidate) -> tuple[float, float]:
        """What fits first, then what takes less time."""
        return max(each.peak - self.memory, 0.0), cost(each)

    def candidate(self, labels: Labels) -> Candidate:
        assignment = self.model.assignment(labels)
        predicted = predict(self.graph, assignment, self.mesh, self.donated)
        peak = float(predicted.peak)
        if self.pieces > 1:
            whole, cut = (self.row(predicted, pieces) for pieces in (1, self.pieces))
            peak += cut.used(labels) - whole.used(labels)
        return Candidate("auto", assignment, predicted, peak)

    def row(self, predicted: Prediction, pieces: int) -> Row:
        """The limit on what is in memory when most is."""
        return limit(self.graph, predicted.alive, self.model, self.memory, self.reused, pieces)

    def limit(self, labels: Labels, own: Candidate) -> bool:
        """Add the limit that these labels exceed; returns whether any labels can keep it."""
        row = self.row(own.predicted, self.pieces)
        row.most -= max(own.peak - row.used(labels), 0.0)  # what the row does not see: copies
        if row.least() > row.most:
            return False
        self.model.problem.rows.append(row)
        return True

    def notes(self, best: Candidate, missing: int) -> list[str]:
        found = []
        if self.pieces > 1:
            found.append(f"the batch is to be cut into {self.pieces} micro-batches, or it does not fit")
        if missing:
            found.append(
                f"{missing} bytes per device more are needed than the {self.memory} there are: "
                "take more devices, a smaller batch, or recompute activations (jax.checkpoint)"
            )
        return found
