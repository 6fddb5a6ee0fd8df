"""`solve`: the layouts of a program on a mesh that take the least time."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction import Prediction, predict
from lepton_jax.parallel.prediction.walk import FAR
from lepton_jax.parallel.presets import PRESETS, PresetError
from lepton_jax.parallel.propagation import propagate
from lepton_jax.parallel.roles import Roles
from lepton_jax.parallel.solver.flat import flatten
from lepton_jax.parallel.solver.limits import limit
from lepton_jax.parallel.solver.model import build, corrected
from lepton_jax.parallel.solver.problem import Labels, Row
from lepton_jax.parallel.solver.rivals import OVER_ALL, preset_layouts
from lepton_jax.parallel.solver.search import GAP, Search, search
from lepton_jax.parallel.solver.solution import Solution, Status

_ROUNDS: Final = 5
_HIDDEN: Final = 0.01
"""What a second of hidden communication counts against one that is waited for. No more is hidden than a step
takes, so what is chosen is predicted to be slower by this part at most."""


def solve(
    graph: Graph,
    roles: Roles,
    mesh: MeshSpec,
    *,
    memory: int | None = None,
    pins: Mapping[Value, Layout] | None = None,
    seconds: float = 60.0,
    gap: float = GAP,
    donated: Collection[int] = (),
) -> Solution:
    """The layouts of a program on a mesh that take the least time.

    Args:
        graph: with plain calls written into their callers; it is not changed.
        roles: of its inputs; what is returned of a parameter or of state lies as it.
        mesh: axes of one device are not used; with a single device all is whole.
        memory: bytes per device; default: what the mesh's chips have.
        pins: layouts that values must have.
        seconds: after which the search takes the best found so far; presets are evaluated besides.
        gap: relative to the bound, at which to stop.
        donated: positions of the inputs whose memory outputs may take.

    Returns:
        a solution that is never predicted to be slower than the best preset that fits as well, by more than a
            hundredth: of what takes about as long, that is taken which hides less communication.

    Raises:
        ValueError: a pin is for another number of dimensions, names an axis that the mesh does not have, or
            does not divide.

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
    return _Solve(graph, roles, mesh, limited, dict(pins or {}), seconds, gap, donated).run()


def _alone(graph: Graph, mesh: MeshSpec, memory: int, donated: Collection[int]) -> Solution:
    """One device takes everything whole."""
    assignment = propagate(graph, {value: Layout.whole(value.ndim) for value in graph.inputs}, mesh)
    found = predict(graph, assignment, mesh, tuple(donated))
    missing = max(0, math.ceil(found.peak - memory))
    status: Status = "greedy" if missing else "optimal"
    notes = (f"the mesh {mesh} has one device",)
    return Solution(assignment, found.seconds, found.seconds, status, found.seconds, 1, missing, {}, notes)


@dataclass(frozen=True, eq=False)
class _Candidate:
    name: str
    assignment: Mapping[Value, Layout]
    predicted: Prediction
    peak: float

    def cost(self) -> float:
        """Seconds, with a little for what is hidden."""
        return self.predicted.seconds + _HIDDEN * (self.predicted.communication - self.predicted.exposed)


class _Solve:
    def __init__(
        self,
        graph: Graph,
        roles: Roles,
        mesh: MeshSpec,
        memory: int,
        pins: dict[Value, Layout],
        seconds: float,
        gap: float,
        donated: Collection[int],
    ) -> None:
        self.graph, self.roles, self.mesh, self.memory, self.pins = graph, roles, mesh, memory, pins
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
        )
        self.inner = [variable for _, variable, _ in self.model.ways]
        self.pieces = 1
        self.bound = 0.0
        self.charged = False

    def run(self) -> Solution:
        found, own = self.best()
        presets = self.presets()
        fitting = [each for each in presets if each.peak <= self.memory]
        best = min([own, *presets], key=self.rank) if self.pieces == 1 else own
        if self.pieces > 1 and fitting:  # a whole batch is better than one in parts
            best, self.pieces = min(fitting, key=self.rank), 1
        objective = self.model.problem.value(found.labels)
        bound = min(self.bound, objective)
        reached = objective - bound <= self.gap * objective
        status: Status = "optimal" if reached else "greedy" if found.finished else "time limit"
        status = status if best is own else "preset"
        missing = max(0, math.ceil(best.peak - self.memory))
        status = "greedy" if missing else status
        return Solution(
            best.assignment,
            objective,
            bound,
            status,
            best.predicted.seconds,
            self.pieces,
            missing,
            {each.name: each.predicted.seconds for each in presets},
            tuple(self.notes(best, missing)),
        )

    def presets(self) -> list[_Candidate]:
        """The presets that can be had, with the pins; those of the batch over all axes at once too."""
        found = []
        for name in (*PRESETS, *OVER_ALL):
            try:
                given = preset_layouts(name, self.graph, self.roles, self.mesh)
                first = [self.graph.inputs[i] for i in self.roles.batch if self.graph.inputs[i] in given]
                wanted, own = {**given, **self.pins}, given.keys() - self.pins.keys()
                assignment = propagate(self.graph, wanted, self.mesh, first=first, yielding=own)
            except (PresetError, ValueError):
                continue
            predicted = predict(self.graph, assignment, self.mesh, self.donated)
            found.append(_Candidate(name, assignment, predicted, float(predicted.peak)))
        return found

    def best(self) -> tuple[Search, _Candidate]:
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

    def within_memory(self, *starts: Labels) -> tuple[Search, _Candidate]:
        """Search, charge what the partitioner does otherwise, limit what is in memory, until all is well."""
        problem = self.model.problem
        tried = [[0] * len(problem.costs), *starts]
        best: tuple[Search, _Candidate] | None = None
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

    def rank(self, each: _Candidate) -> tuple[float, float]:
        """What fits first, then what takes less time."""
        return max(each.peak - self.memory, 0.0), each.cost()

    def candidate(self, labels: Labels) -> _Candidate:
        assignment = self.model.assignment(labels)
        predicted = predict(self.graph, assignment, self.mesh, self.donated)
        peak = float(predicted.peak)
        if self.pieces > 1:
            whole, cut = (self.row(labels, predicted, pieces) for pieces in (1, self.pieces))
            peak += cut.used(labels) - whole.used(labels)
        return _Candidate("auto", assignment, predicted, peak)

    def row(self, labels: Labels, predicted: Prediction, pieces: int) -> Row:
        """The limit on what is in memory when most is."""
        return limit(self.graph, predicted.where, self.model, labels, self.memory, self.reused, pieces)

    def limit(self, labels: Labels, own: _Candidate) -> bool:
        """Add the limit that these labels exceed; returns whether any labels can keep it."""
        row = self.row(labels, own.predicted, self.pieces)
        row.most -= max(own.peak - row.used(labels), 0.0)  # what the row does not see: copies
        if row.least() > row.most:
            return False
        self.model.problem.rows.append(row)
        return True

    def notes(self, best: _Candidate, missing: int) -> list[str]:
        found = []
        if self.pieces > 1:
            found.append(f"the batch is to be cut into {self.pieces} micro-batches, or it does not fit")
        if missing:
            found.append(
                f"{missing} bytes per device more are needed than the {self.memory} there are: "
                "take more devices, a smaller batch, or recompute activations (jax.checkpoint)"
            )
        return found
