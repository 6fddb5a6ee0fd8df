"""Which units go: by their importance, a ratio or a budget, in steps that hardware likes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from lepton_jax.ir.dimensions import Group
from lepton_jax.rewrite import UsageError

Ranking = Literal["group", "global"]
Units: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
Chosen: TypeAlias = dict[str, Units]
"""By the name of the group, of groups that lose some, the units that stay, increasing."""
_PARTS: Final = 4096
_NUMBER: Final = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?"
_BUDGET: Final = re.compile(rf"\s*(flops|parameters|time|seconds)\s*<=?\s*({_NUMBER})\s*")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A group whose units may go.

    Attributes:
        group: the group.
        scores: how important each unit is, [units].
        ratio: the share of its units that goes, where it has one of its own.
    """

    group: Group
    scores: np.ndarray[Any, Any]
    ratio: float | None = None


@dataclass(frozen=True)
class Limits:
    """How far a group may be cut.

    Attributes:
        least: units that stay in each group: a number, or a share below 1.
        round_to: what stays is a multiple of this many indices, if any goes.
    """

    least: float = 1
    round_to: int = 1

    def counts(self, group: Group) -> list[int]:
        """The numbers of units that may stay of a group, the smallest first."""
        wide = min((each.positions.shape[1] for each in group.params), default=1)
        step = self.round_to // math.gcd(self.round_to, wide)
        least = max(1, math.ceil(self.least * group.units) if self.least < 1 else int(self.least))
        return [count for count in range(step, group.units, step) if count >= least] + [group.units]


@dataclass(frozen=True)
class Budget:
    """What a program may cost.

    Attributes:
        what: `flops`, `parameters`, or `time` as predicted for the target.
        bound: the most.
        is_share: whether it is a share of what the program costs before.
        text: as it was given.
    """

    what: Literal["flops", "parameters", "time"]
    bound: float
    is_share: bool
    text: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From `flops<=0.5`, `parameters<=1e6`, `time<=0.6` (shares up to 1) or `seconds<=0.002`.

        Raises:
            UsageError: it is none of these.
        """
        found = _BUDGET.fullmatch(text)
        if found is None or float(found[2]) <= 0:
            raise UsageError(
                f"budget={text!r}: give flops<=0.5, parameters<=0.5 or time<=0.5 (shares), or flops<=1e9, "
                "parameters<=1e6 or seconds<=0.002"
            )
        name, bound = found[1], float(found[2])
        if name == "seconds":
            return cls("time", bound, False, text.strip())
        if name == "time" and bound > 1:
            raise UsageError(
                f"budget={text!r}: time is a share up to 1; for an absolute bound give seconds<=..."
            )
        return cls(name, bound, bound <= 1, text.strip())  # type: ignore[arg-type]

    def excess(self, cost: Mapping[str, float], before: Mapping[str, float]) -> float:
        """By how much a cost is over the budget, as a share of the budget; 0 or less where it is met."""
        bound = self.bound * before[self.what] if self.is_share else self.bound
        return cost[self.what] / bound - 1


def choose(candidates: Sequence[Candidate], share: float, ranking: Ranking, limits: Limits) -> Chosen:
    """The units that stay where a share of the units goes.

    Args:
        share: of each group, or, in a `global` ranking, of all units together.

    Returns:
        By the name of the group, of groups that lose some, the units that stay, increasing.
    """
    shares = [share] * len(candidates) if ranking == "group" else _global_shares(candidates, share)
    found: Chosen = {}
    for candidate, each in zip(candidates, shares, strict=True):
        units = candidate.group.units
        wanted = units * (1 - (each if candidate.ratio is None else candidate.ratio))
        count = min(limits.counts(candidate.group), key=lambda count: (abs(count - wanted), -count))
        if count < units:
            best = np.argsort(-candidate.scores, kind="stable")[:count]
            found[candidate.group.name] = np.sort(best).astype(np.int64)
    return found


def _global_shares(candidates: Sequence[Candidate], share: float) -> list[float]:
    """The share of each group among the least important units of all."""
    if not candidates:
        return []
    owner = np.concatenate([np.full(each.group.units, i) for i, each in enumerate(candidates)])
    scores = np.concatenate([each.scores for each in candidates])
    gone = owner[np.argsort(scores, kind="stable")[: round(share * len(scores))]]
    return [float(np.sum(gone == i) / each.group.units) for i, each in enumerate(candidates)]


def meet(choice: Callable[[float], Chosen], excess: Callable[[Chosen], float]) -> Chosen:
    """The choice with the smallest share gone that meets a budget; if none does, the one that comes closest.

    Where steps are large many groups take the next one at the same share; then they take it one by one.

    Args:
        choice: from the share that goes to what stays.
        excess: by how much a choice is over the budget.
    """
    over, best = choice(0.0), choice(1.0)
    if excess(over) <= 0:
        return over
    if excess(best) > 0:
        return best
    low, high = 0, _PARTS
    while high - low > 1:
        middle = (low + high) // 2
        found = choice(middle / _PARTS)
        if excess(found) <= 0:
            high, best = middle, found
        else:
            low, over = middle, found
    steps = [name for name, units in best.items() if len(over.get(name, ())) != len(units)]
    least, most = 0, len(steps)
    while most - least > 1:
        middle = (least + most) // 2
        found = over | {name: best[name] for name in steps[:middle]}
        if excess(found) <= 0:
            most = middle
        else:
            least = middle
    return over | {name: best[name] for name in steps[:most]}
