"""Which of the solver's best few is taken, by what XLA makes of each: Shardy's passes, or its compiler.

Both say what the devices really send one another. What that is more, or less, than was predicted is waited
for; what was predicted to hide behind arithmetic hides. A compiled program says how much memory it takes
too, and one for TPUs how many cycles it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from jax.sharding import AbstractMesh, Mesh

from lepton_jax._sharded.meeting import group_of
from lepton_jax._sharded.request import Spread
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.meshes import MeshSpec

if TYPE_CHECKING:
    from lepton_jax._sharded.decision import Decision
    from lepton_jax.parallel.solver.solution import Candidate

Lower = Callable[["Decision"], Any]
NAMES: Final = {"shardy": "Shardy's passes", "compile": "the compiler"}


class CannotJudge(RuntimeError):
    """A judge is not to be had here. The message says why."""


@dataclass(frozen=True)
class Score:
    """What a judge says of a candidate.

    Attributes:
        name: of the candidate.
        seconds: a step.
        predicted: the seconds that were predicted.
        sent: bytes that a device sends in a step.
        missing: bytes per device by which it does not fit.
    """

    name: str
    seconds: float
    predicted: float
    sent: float
    missing: float = 0.0

    def __str__(self) -> str:
        said = f"{self.name} {self.seconds * 1e3:.4g} ms (predicted {self.predicted * 1e3:.4g}"
        return f"{said}; {self.sent / 1e6:.4g} MB sent" + (
            f", {self.missing / 1e9:.3g} GB too large)" if self.missing else ")"
        )


def judged(decision: Decision, spread: Spread, lower: Lower) -> Decision:
    """The decision with the candidate that the judge takes, and notes of what it said of each.

    Where there is no such judge here, or it fails, the next one that there is decides: the compiler, Shardy's
    passes, the prediction. A note says so.

    Args:
        decision: of the solver's.
        spread: what the user says: who is the judge.
        lower: the program of a decision, lowered.
    """
    judge, solution = spread.sharding.judge, decision.solution
    if judge == "predict" or solution is None or decision.mesh.devices < 2:
        return decision
    if len(solution.candidates) < 2 or solution.candidates[0].assignment is not decision.assignment:
        return _noted(decision, f"judge {judge}: there is one candidate, nothing to choose")
    limit = decision.mesh.chip.memory if spread.memory is None else spread.memory
    for each in ("compile", "shardy") if judge == "compile" else ("shardy",):
        try:
            scores, failed = _scores(each, decision, solution.candidates, lower, limit)
        except CannotJudge as error:
            decision = _noted(decision, f"judge {each}: {error}; not judged by {NAMES[each]}")
            continue
        wanted = solution.by
        best = min(
            scores, key=lambda n: (scores[n].missing, wanted.amount(scores[n].seconds, scores[n].sent), n)
        )
        taken = solution.candidates[best]
        said = "; ".join(map(str, scores.values()))
        decision = _noted(decision, *failed, f"judged by {NAMES[each]}: {said}: {taken.name} is taken")
        return replace(decision, assignment=taken.assignment)
    return _noted(decision, "the candidates are judged by the prediction alone")


def _noted(decision: Decision, *notes: str) -> Decision:
    return replace(decision, notes=(*decision.notes, *notes))


def _scores(
    judge: str, decision: Decision, candidates: Sequence[Candidate], lower: Lower, limit: int
) -> tuple[dict[int, Score], list[str]]:
    """What a judge says of the candidates, by position, and of which it could say nothing.

    Raises:
        CannotJudge: of none of them.
    """
    score = _compiler(decision, limit) if judge == "compile" else _shardy
    found: dict[int, Score] = {}
    failed: list[str] = []
    for n, each in enumerate(candidates):
        try:
            lowered = lower(replace(decision, assignment=each.assignment))
            found[n] = score(each, lowered)
        except CannotJudge:
            raise
        except Exception as error:  # whatever a compiler raises
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            failed.append(f"judge {judge}: of {each.name} nothing could be found out: {reason}")
    if not found:
        raise CannotJudge(failed[0].partition(": ")[2])
    return found, failed


def _shardy(candidate: Candidate, lowered: Any) -> Score:
    from lepton_jax.parallel.aot.shardy import ShardyUnavailable, propagated

    try:
        moves = propagated(lowered).joined()
    except ShardyUnavailable as error:
        raise CannotJudge(str(error)) from error
    return _score(candidate, moves, candidate.predicted.mesh)


def _compiler(decision: Decision, limit: int) -> Callable[[Candidate, Any], Score]:
    """What compiles for the mesh of a decision.

    Raises:
        CannotJudge: the mesh has no devices.
    """
    on = decision.on
    if not isinstance(on, Mesh):
        raise CannotJudge("an abstract mesh has no devices to compile for")
    from lepton_jax.parallel.aot.compile import read_compiled

    # one process judges: a compiler for GPUs would wait for what the others try of its kernels
    alone = group_of(on) is not None and platform_of(on) == "cuda"
    options = {"xla_gpu_shard_autotuning": False} if alone else None

    def score(candidate: Candidate, lowered: Any) -> Score:
        mesh = candidate.predicted.mesh
        read = read_compiled(lowered, list(on.devices.flat), mesh, compiler_options=options)
        if read.memory is None:
            return Score(candidate.name, float("inf"), candidate.predicted.seconds, 0.0, read.needed - limit)
        moves = [each.collective() for each in read.collectives if each.axes]
        peak = read.memory.peak
        return _score(candidate, moves, mesh, read.compute_seconds, max(0.0, float(peak - limit)))

    return score


def _score(
    candidate: Candidate,
    moves: Iterable[Collective],
    mesh: MeshSpec,
    computing: float | None = None,
    missing: float = 0.0,
) -> Score:
    """Seconds with these collectives in place of those predicted.

    Args:
        computing: seconds of arithmetic and memory; those predicted where it is None.
    """
    predicted, known = candidate.predicted, list(moves)
    total = sum(each.seconds(mesh) * each.times for each in known)
    sent = sum(each.sent(mesh) * each.times for each in known)
    waited = max(0.0, predicted.exposed + total - predicted.communication)
    work = max(predicted.compute, predicted.traffic) if computing is None else computing
    return Score(candidate.name, work + waited, predicted.seconds, sent, missing)


def platform_of(mesh: Mesh | AbstractMesh) -> str | None:
    """For which platform a program over a mesh is lowered; None for the one that JAX runs on."""
    if not isinstance(mesh, Mesh):
        return None
    platform = str(mesh.devices.flat[0].platform)
    return "cuda" if platform == "gpu" else platform
