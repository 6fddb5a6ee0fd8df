"""What the solver returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lepton_jax.ir.graph import Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.prediction.result import Prediction
from lepton_jax.parallel.solver.objective import TIME, Objective, sent

Status = Literal["optimal", "time limit", "greedy", "preset", "overlap", "sums", "time", "bytes"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """Layouts that may be the best.

    Attributes:
        name: who found them: `auto`, `auto, overlapped`, `auto, sums together`, `auto, fewer bytes`, or a
            preset; `auto by time` where bytes are counted.
        assignment: of every value its layout.
        predicted: what they cost.
        peak: bytes per device when most is there; of a batch in parts, of one part.
    """

    name: str
    assignment: Mapping[Value, Layout]
    predicted: Prediction
    peak: float

    @property
    def sent(self) -> float:
        """The bytes that a device sends in a step."""
        return sent(self.predicted.collectives, self.predicted.mesh)


@dataclass(frozen=True, eq=False)
class Solution:
    """A way to lay a program on a mesh.

    Attributes:
        assignment: of every value, those of regions too.
        objective: seconds a step of what the search found by its own model, in which nothing overlaps; by
            bytes what it sends, with a kilobyte for each of these milliseconds.
        bound: no layouts of the model within the memory take less; by bytes none that share the arithmetic.
        status: `optimal`: shown to be the best to within the gap asked for; `time limit`: the best found in
            time; `greedy`: the search ended above the bound; `overlap`: layouts that were found with hidden
            communication counted less are predicted to be faster, and are taken instead; `sums`: so are those
            that were found with sums counted as they are completed together; `bytes`: those of a search by
            bytes; `time`: the fastest layouts are predicted to send less than what the
            search by bytes found; `preset`: so is a preset.
        predicted: seconds a step by `predict`, of which overlap is part.
        microbatches: into how many parts the batch is to be cut for the program to fit.
        missing: bytes per device by which it does not fit even so; 0 where it does.
        rivals: of the presets that can be had for this program and mesh, the seconds, or the bytes, by
            `predict`.
        notes: what else there is to say.
        candidates: the best few that were compared, the one taken first.
        by: what was looked for.
        sent: bytes that a device is predicted to send in a step.
    """

    assignment: Mapping[Value, Layout]
    objective: float
    bound: float
    status: Status
    predicted: float = 0.0
    microbatches: int = 1
    missing: int = 0
    rivals: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    by: Objective = TIME
    sent: float = 0.0

    @property
    def cost(self) -> float:
        """What was looked for: the predicted seconds, or the bytes with a kilobyte for each millisecond."""
        return self.by.amount(self.predicted, self.sent)

    @property
    def gap(self) -> float:
        """How much less than the objective could be possible, as a part of it.

        Example:
            >>> Solution({}, objective=2.0, bound=1.5, status="time limit").gap
            0.25
        """
        return max(0.0, 1.0 - self.bound / self.objective) if self.objective > 0 else 0.0

    def __str__(self) -> str:
        taken = self.candidates[0].name if self.candidates else "auto"
        who = f", {taken} taken" if taken != "auto" else ""
        best = min(self.rivals, key=lambda name: self.rivals[name], default=None)
        beside = "" if best is None else f" ({best}, the best preset, {self.by.words(self.rivals[best])})"
        within = f"the search is within {100 * self.gap:.2g} % of its bound"
        milliseconds = f"{self.predicted * 1e3:.4g} ms predicted"
        if self.by is TIME:
            return f"{self.status}{who}: {milliseconds}{beside}; {within}"
        sent = f"{self.by.words(self.sent)} sent by each device{beside}, {milliseconds}"
        return f"{self.status}{who}: {sent}; {within}, {self.by.words(self.bound)}"
