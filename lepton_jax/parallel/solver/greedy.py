"""Choices without the integer program: improve one until no single change of a layout helps.

A change of one variable is judged with all *inner* variables around it (the strategies of operations)
chosen anew, so that layouts on both sides of a product can move one after the other. Limits are priced:
what exceeds them costs, more and more, until it fits (Lagrangian relaxation; Fisher, 1981).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from lepton_jax.parallel.solver.problem import Floats, Labels, Problem

_ROUNDS = 30


class Improver:
    """Improves choices of one problem.

    Args:
        problem: what is chosen.
        inner: variables of which no two have a pair cost: they follow the others.
    """

    def __init__(self, problem: Problem, inner: Collection[int]) -> None:
        self.problem = problem
        self.inner = frozenset(inner)
        self.around: dict[int, list[tuple[int, Floats]]] = defaultdict(list)
        for (i, j), table in problem.pairs.items():
            self.around[i].append((j, table))
            self.around[j].append((i, table.T))
        self.costs = list(problem.costs)

    def fitting(self, start: Sequence[int]) -> Labels:
        """The best choice near `start` within the limits, else the one that exceeds them least."""
        best = self.improved(start)
        if self.problem.excess(best) <= 0:
            return best
        price = self.problem.value(best)
        price = (price if np.isfinite(price) and price > 0 else 1.0) * 0.25
        chosen = best
        for _ in range(12):
            self.priced(price)
            chosen = self.improved(chosen)
            if self.problem.excess(chosen) < self.problem.excess(best):
                best = chosen
            if self.problem.excess(chosen) <= 0:
                break
            price *= 3.0
        self.costs = list(self.problem.costs)
        return best

    def priced(self, price: float) -> None:
        """Let what rows limit cost: `price` seconds for all that a row allows."""
        self.costs = list(self.problem.costs)
        for row in self.problem.rows:
            for i, needs in row.needs.items():
                self.costs[i] = self.costs[i] + price / max(row.most, 1.0) * needs

    def improved(self, start: Sequence[int]) -> Labels:
        """A choice that no change of one variable makes cheaper."""
        chosen = list(start)
        outer = [i for i in range(len(self.costs)) if i not in self.inner]
        for i in self.inner:
            chosen[i] = int(np.argmin(self.view(i, chosen, None)))
        waiting = dict.fromkeys(outer)
        for _ in range(_ROUNDS * max(len(outer), 1)):
            if not waiting:
                break
            i = next(iter(waiting))
            del waiting[i]
            if len(self.costs[i]) < 2:
                continue
            total, found = self.outlook(i, chosen)
            new = int(np.argmin(total))
            if not total[new] < total[chosen[i]] - 1e-12 * abs(total[new]):
                continue
            chosen[i] = new
            for j, labels in found.items():
                chosen[j] = int(labels[new])
                waiting.update((k, None) for k, _ in self.around[j] if k != i and k not in self.inner)
            waiting.update((j, None) for j, _ in self.around[i] if j not in self.inner)
        return chosen

    def view(self, i: int, chosen: Sequence[int], without: int | None) -> Floats:
        """What each label of a variable costs beside what is chosen around it."""
        total = self.costs[i].copy()
        for j, table in self.around[i]:
            if j != without:
                total += table[:, chosen[j]]
        return total

    def outlook(self, i: int, chosen: Sequence[int]) -> tuple[Floats, dict[int, np.ndarray]]:
        """What each label costs when inner variables around follow, and which labels these take then."""
        total = self.costs[i].copy()
        found: dict[int, np.ndarray] = {}
        for j, table in self.around[i]:
            if j in self.inner:
                both = table + self.view(j, chosen, i)
                found[j] = both.argmin(axis=1)
                total += both.min(axis=1)
            else:
                total += table[:, chosen[j]]
        return total, found
