"""`solve`: the layouts of a program on a mesh that take the least time, or send the fewest bytes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.factors.lookup import kept_factors
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.opened import Opened
from lepton_jax.parallel.prediction import predict
from lepton_jax.parallel.propagation import propagate
from lepton_jax.parallel.roles import Roles
from lepton_jax.parallel.solver.contest import Contest
from lepton_jax.parallel.solver.fitting import Task
from lepton_jax.parallel.solver.objective import OBJECTIVES, TIME, Objective
from lepton_jax.parallel.solver.search import GAP
from lepton_jax.parallel.solver.solution import Solution, Status


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
    objective: str = "time",
) -> Solution:
    """The layouts of a program on a mesh that take the least time, or send the fewest bytes.

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
        objective: what is to be little: the `time` of a step, or the `bytes` that a device sends in one. What
            every device computes whole sends nothing, so that by bytes products are split as far as in the
            fastest layouts, which are searched for first; those aside that are of no weight. Of what sends as
            much the faster is taken: a millisecond counts as a kilobyte.

    Returns:
        a solution that is never predicted to be slower than the best preset that fits as well, by more than a
            hundredth: of what takes about as long, that is taken which hides less communication. By bytes one
            that is predicted to send no more than any preset that fits and shares the arithmetic as well, nor
            than what takes the least time.

    Raises:
        ValueError: a pin is for another number of dimensions, names an axis that the mesh does not have, or
            does not divide; or there is no such objective.
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
    if objective not in OBJECTIVES:
        raise ValueError(f"an objective is {' or '.join(OBJECTIVES)}, not {objective!r}")
    for value, layout in (pins or {}).items():
        layout.check(value.shape, mesh, "a pinned array")
    limited = mesh.chip.memory if memory is None else memory
    task = Task(graph, roles, mesh, limited, dict(pins or {}), dict(opened or {}), gap, tuple(donated))
    if mesh.devices < 2:
        return _alone(task, OBJECTIVES[objective])
    with kept_factors():
        run = Contest(task, seconds)
        return run.by_time(beat) if objective == TIME.name else run.by_bytes()


def _alone(task: Task, objective: Objective) -> Solution:
    """One device takes everything whole."""
    graph, mesh = task.graph, task.mesh
    assignment = propagate(graph, {value: Layout.whole(value.ndim) for value in graph.inputs}, mesh)
    found = predict(graph, assignment, mesh, task.donated)
    missing = max(0, math.ceil(found.peak - task.memory))
    status: Status = "greedy" if missing else "optimal"
    cost = objective.amount(found.seconds, 0.0)
    notes = (f"the mesh {mesh} has one device",)
    return Solution(assignment, cost, cost, status, found.seconds, 1, missing, {}, notes, by=objective)
