"""A bound from below, and which labels cannot be in a better choice, without an integer program.

Tree-reweighted message passing, one variable after the other (TRW-S; Kolmogorov, 2006), raises the bound of
the local polytope, the relaxation of the integer program. Whatever the messages are, what they leave is a
bound; what a label costs beyond it says whether the label can be in a choice that is better than a known
one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lepton_jax.parallel.solver.problem import Floats, Labels, Problem


@dataclass(eq=False)
class _Link:
    """A pair of variables: its table by kinds of labels, which kind each label is, and the messages."""

    i: int
    j: int
    table: Floats
    rows: np.ndarray
    columns: np.ndarray
    to_i: Floats
    to_j: Floats


class Dual:
    """Messages between the variables of a problem; limits are not looked at."""

    def __init__(self, problem: Problem, order: Sequence[int], ceiling: float) -> None:
        self.costs = [np.minimum(costs, ceiling) for costs in problem.costs]
        self.order = list(order)
        self.place = place = {v: n for n, v in enumerate(self.order)}
        self.links: list[_Link] = []
        self.before: list[list[_Link]] = [[] for _ in self.costs]
        self.after: list[list[_Link]] = [[] for _ in self.costs]
        kinds: dict[int, tuple[Floats, np.ndarray, np.ndarray, Floats]] = {}
        for (i, j), table in problem.pairs.items():
            if id(table) not in kinds:
                kinds[id(table)] = (*_kinds(np.minimum(table, ceiling)), table)
            small, rows, columns, _ = kinds[id(table)]
            link = _Link(i, j, small, rows, columns, np.zeros(table.shape[0]), np.zeros(table.shape[1]))
            self.links.append(link)
            first, last = (i, j) if place[i] < place[j] else (j, i)
            self.after[first].append(link)
            self.before[last].append(link)
        self.bound = self.spread().bound
        self._own = list(self.costs)

    def charge(self, costs: Mapping[int, Floats]) -> None:
        """Let labels cost so much besides; the messages stay, the bound is that of the new costs."""
        self.costs = [own + costs[i] if i in costs else own for i, own in enumerate(self._own)]
        self.bound = self.spread().bound

    def beliefs(self, v: int) -> Floats:
        """What the labels of a variable cost with all messages to it."""
        total = self.costs[v].copy()
        for link in self.before[v]:
            total += link.to_i if link.i == v else link.to_j
        for link in self.after[v]:
            total += link.to_i if link.i == v else link.to_j
        return total

    def sweep(self, order: Sequence[int], onward: list[list[_Link]]) -> None:
        """Send messages along an order."""
        for v in order:
            links = onward[v]
            if not links:
                continue
            share = self.beliefs(v) / max(len(self.before[v]), len(self.after[v]))
            for link in links:
                if link.i == v:
                    table, mine, theirs, back = link.table, link.rows, link.columns, link.to_i
                else:
                    table, mine, theirs, back = link.table.T, link.columns, link.rows, link.to_j
                best = np.full(table.shape[0], np.inf)
                np.minimum.at(best, mine, share - back)
                message = (table + best[:, None]).min(axis=0)[theirs]
                message -= message.min()
                if link.i == v:
                    link.to_j = message
                else:
                    link.to_i = message

    def spread(self) -> _Spread:
        """The costs as the messages have spread them over variables and pairs: their least sum is the bound.

        Each variable's belief goes in equal shares to the pairs with variables before it, as in a sweep
        backward.
        """
        nodes, shares = [], []
        for v in range(len(self.costs)):
            belief = self.beliefs(v)
            part = 1.0 / max(len(self.before[v]), len(self.after[v]), 1)
            nodes.append(belief * (1.0 - part * len(self.before[v])))
            shares.append(belief * part)
        total = sum(float(node.min()) for node in nodes)
        pairs = {}
        for link in self.links:
            to_i, to_j = _by_kind(link.to_i, link.rows), _by_kind(link.to_j, link.columns)
            left = link.table - to_i[:, None] - to_j[None, :]
            last_is_j = self.place[link.i] < self.place[link.j]
            best = _by_kind(
                shares[link.j] if last_is_j else shares[link.i], link.columns if last_is_j else link.rows
            )
            low = float((left + (best[None, :] if last_is_j else best[:, None])).min())
            pairs[id(link)] = left, best, last_is_j, low
            total += low
        return _Spread(nodes, shares, pairs, total)

    def run(self, seconds: float, goal: float, rounds: int = 300) -> None:
        """Raise the bound until it stands still, comes to `goal`, or time is up."""
        end = time.monotonic() + seconds
        backward = self.order[::-1]
        last = self.bound
        for n in range(rounds):
            self.sweep(self.order, self.after)
            self.sweep(backward, self.before)
            if n % 5 == 4:
                self.bound = max(self.bound, self.spread().bound)
                if self.bound >= goal or time.monotonic() > end:
                    return
                if self.bound - last < 1e-5 * (goal - last if np.isfinite(goal) else abs(last)):
                    return
                last = self.bound

    def decoded(self) -> Labels:
        """A choice that the messages suggest."""
        chosen = [-1] * len(self.costs)
        for v in self.order:
            total = self.costs[v].copy()
            for link in self.before[v]:
                if link.i == v:
                    total += link.table[:, link.columns[chosen[link.j]]][link.rows]
                else:
                    total += link.table[link.rows[chosen[link.i]]][link.columns]
            for link in self.after[v]:
                total += link.to_i if link.i == v else link.to_j
            chosen[v] = int(np.argmin(total))
        return chosen

    def excess(self) -> list[Floats]:
        """Of each label what choosing it costs at least beyond the bound."""
        spread = self.spread()
        found = []
        for v, node in enumerate(spread.nodes):
            extra = node - node.min() + (spread.bound - self.bound)
            for link in (*self.before[v], *self.after[v]):
                left, best, last_is_j, low = spread.pairs[id(link)]
                kinds = link.rows if link.i == v else link.columns
                if (link.j == v) == last_is_j:  # the share that the pair has is this variable's own
                    own = left.min(axis=0) if last_is_j else left.min(axis=1)
                    extra = extra + own[kinds] + spread.shares[v] - low
                else:
                    both = left + (best[None, :] if last_is_j else best[:, None])
                    extra = extra + both.min(axis=1 if last_is_j else 0)[kinds] - low
            found.append(extra)
        return found


@dataclass(eq=False)
class _Spread:
    """See `Dual.spread`: of pairs what is left, the least share of each kind, whose it is, the sum."""

    nodes: list[Floats]
    shares: list[Floats]
    pairs: dict[int, tuple[Floats, Floats, bool, float]]
    bound: float


def _by_kind(values: Floats, kinds: np.ndarray) -> Floats:
    """The least value of each kind."""
    best = np.full(int(kinds.max()) + 1, np.inf)
    np.minimum.at(best, kinds, values)
    return best


def _kinds(table: Floats) -> tuple[Floats, np.ndarray, np.ndarray]:
    """A table without equal rows and columns, and which of them each label has."""
    _, rows, of_row = np.unique(table, axis=0, return_index=True, return_inverse=True)
    _, columns, of_column = np.unique(table, axis=1, return_index=True, return_inverse=True)
    return table[np.ix_(rows, columns)], of_row.ravel(), of_column.ravel()
