"""The integer program, on HiGHS.

One binary for each label of each variable. Two variables whose labels cost something together are tied by a
transport problem: how much of each pair of *kinds* is chosen, a kind being labels that cost the same in
that table. Its relaxation is the local polytope, the tightest that pairs allow (Wainwright and Jordan,
2008, section 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from lepton_jax.parallel.solver.problem import Floats, Labels, Problem


@dataclass(frozen=True)
class Found:
    """What the integer program found.

    Attributes:
        labels: the best choice; None if there is none, or none was found in time.
        bound: no choice costs less.
        status: `optimal`, `time limit` or `infeasible`.
    """

    labels: Labels | None
    bound: float
    status: str


class _Program:
    def __init__(self) -> None:
        self.costs: list[Floats] = []
        self.upper: list[Floats] = []
        self.count = 0
        self.rows = 0
        self.entries: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] = ([], [], [])
        self.low: list[Floats] = []
        self.high: list[Floats] = []

    def columns(self, costs: Floats) -> int:
        """New columns; forbidden ones stay 0."""
        forbidden = np.isinf(costs)
        self.costs.append(np.where(forbidden, 0.0, costs))
        self.upper.append(np.where(forbidden, 0.0, 1.0))
        first = self.count
        self.count += len(costs)
        return first

    def equations(self, count: int, low: float, high: float) -> int:
        """New rows."""
        self.low.append(np.full(count, low))
        self.high.append(np.full(count, high))
        first = self.rows
        self.rows += count
        return first

    def put(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        for kept, new in zip(self.entries, (rows, columns, values), strict=True):
            kept.append(new)


def solve_integer(problem: Problem, seconds: float, gap: float = 1e-4) -> Found:
    """The cheapest choice within the limits.

    Args:
        problem: what to choose.
        seconds: after which the best found so far is taken.
        gap: relative, at which to stop.
    """
    if not problem.costs:
        return Found([], 0.0, "optimal")
    program = _Program()
    scale = _scale(problem)
    first = [program.columns(costs / scale) for costs in problem.costs]
    binaries = program.count
    for start, costs in zip(first, problem.costs, strict=True):
        row = program.equations(1, 1.0, 1.0)
        n = len(costs)
        program.put(np.full(n, row), np.arange(start, start + n), np.ones(n))
    for (i, j), table in problem.pairs.items():
        _pair(program, first[i], first[j], table / scale)
    for limit in problem.rows:
        unit = max(limit.most, 1.0)
        row = program.equations(1, -np.inf, limit.most / unit)
        for i, needs in limit.needs.items():
            program.put(np.full(len(needs), row), np.arange(first[i], first[i] + len(needs)), needs / unit)
    rows, columns, values = (np.concatenate(each) for each in program.entries)
    matrix = coo_array((values, (rows, columns)), shape=(program.rows, program.count)).tocsr()
    integrality = np.zeros(program.count)
    integrality[:binaries] = 1
    result = milp(
        np.concatenate(program.costs),
        constraints=LinearConstraint(matrix, np.concatenate(program.low), np.concatenate(program.high)),
        integrality=integrality,
        bounds=Bounds(0.0, np.concatenate(program.upper)),
        options={"time_limit": max(seconds, 0.1), "mip_rel_gap": gap},
    )
    bound = getattr(result, "mip_dual_bound", None)
    lowest = -np.inf if bound is None else float(bound) * scale
    if result.status == 2:
        return Found(None, np.inf, "infeasible")
    if result.x is None:
        return Found(None, lowest, "time limit")
    labels = [
        int(np.argmax(result.x[start : start + len(costs)]))
        for start, costs in zip(first, problem.costs, strict=True)
    ]
    return Found(labels, lowest, "optimal" if result.status == 0 else "time limit")


def _scale(problem: Problem) -> float:
    """A unit in which costs are neither tiny nor huge for the tolerances of HiGHS."""
    tables = [*problem.costs, *problem.pairs.values()]
    finite = [float(table[np.isfinite(table)].max(initial=0.0)) for table in tables]
    return max(*finite, 0.0, 1e-30) / 1e3 if finite else 1.0


def _pair(program: _Program, i: int, j: int, table: Floats) -> None:
    _, of_row = np.unique(table, axis=0, return_inverse=True)
    _, of_column = np.unique(table, axis=1, return_inverse=True)
    of_row, of_column = of_row.ravel(), of_column.ravel()
    heads = [int(np.flatnonzero(of_row == k)[0]) for k in range(of_row.max() + 1)]
    tails = [int(np.flatnonzero(of_column == k)[0]) for k in range(of_column.max() + 1)]
    small = table[np.ix_(heads, tails)]
    if small.shape == (1, 1):
        program.costs[0] = program.costs[0] + small[0, 0]  # one of the first variable's labels is chosen
        return
    a, b = small.shape
    start = program.columns(small.ravel())
    cells = np.arange(start, start + a * b).reshape(a, b)
    for offset, kinds, count, along in ((i, of_row, a, cells), (j, of_column, b, cells.T)):
        row = program.equations(count, 0.0, 0.0)
        places = np.repeat(np.arange(row, row + count), along.shape[1])
        program.put(places, along.ravel(), np.ones(along.size))
        program.put(row + kinds, np.arange(offset, offset + len(kinds)), -np.ones(len(kinds)))
