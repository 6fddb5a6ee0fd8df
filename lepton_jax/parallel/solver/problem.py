"""The problem of choosing: variables with labels, what labels and pairs of them cost, what is limited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = list[int]


@dataclass(eq=False)
class Row:
    """A limit: the sum of what the chosen labels need is at most `most`.

    Attributes:
        needs: by variable what each label needs.
        most: the limit.
        what: its name, for messages.
    """

    needs: dict[int, Floats]
    most: float
    what: str = ""

    def used(self, labels: Sequence[int]) -> float:
        """What a choice needs of it."""
        return float(sum(needs[labels[i]] for i, needs in self.needs.items()))

    def least(self) -> float:
        """What every choice needs at least."""
        return float(sum(needs.min() for needs in self.needs.values()))


@dataclass(eq=False)
class Problem:
    """Variables, each of which takes one label.

    Attributes:
        costs: of each variable what each label costs, in seconds; inf where it is forbidden.
        pairs: of two variables i < j what each pair of labels costs; inf where it is forbidden.
        rows: the limits.
        names: of each variable, for messages.
    """

    costs: list[Floats] = field(default_factory=list)
    pairs: dict[tuple[int, int], Floats] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    names: list[Any] = field(default_factory=list)
    turned: dict[int, tuple[Floats, Floats]] = field(default_factory=dict, repr=False)

    def variable(self, labels: int, name: Any = "") -> int:
        """A new variable with so many labels."""
        self.costs.append(np.zeros(labels))
        self.names.append(name)
        return len(self.costs) - 1

    def add(self, i: int, j: int, costs: Floats) -> None:
        """What pairs of labels of two variables cost: `costs[a, b]` for a of i and b of j."""
        if len(self.costs[i]) == 1:
            self.costs[j] = self.costs[j] + costs[0]
            return
        if len(self.costs[j]) == 1:
            self.costs[i] = self.costs[i] + costs[:, 0]
            return
        key, table = ((i, j), costs) if i < j else ((j, i), self._turned(costs))
        known = self.pairs.get(key)
        self.pairs[key] = table if known is None else known + table

    def _turned(self, table: Floats) -> Floats:
        """The table with rows for columns; of one table always the same array."""
        known = self.turned.get(id(table))
        if known is None:
            known = self.turned[id(table)] = (table, table.T)
        return known[1]

    def value(self, labels: Sequence[int]) -> float:
        """What a choice costs, limits aside."""
        total = float(sum(costs[labels[i]] for i, costs in enumerate(self.costs)))
        return total + float(sum(table[labels[i], labels[j]] for (i, j), table in self.pairs.items()))

    def excess(self, labels: Sequence[int]) -> float:
        """By how much a choice exceeds the limits, at most."""
        return max((row.used(labels) - row.most for row in self.rows), default=0.0)
