"""Data movement: compositions of operations that only move elements about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.passes.simplify._movement import (
    broadcasts,
    dots,
    joins,
    orders,
    pads,
    reductions,
    slices,
    splats,
    views,
    windows,
)
from lepton_jax.rewrite import Rule, RulePass

RULES: Final[tuple[Rule, ...]] = (
    *views.RULES,
    *splats.RULES,
    *broadcasts.RULES,
    *orders.RULES,
    *slices.RULES,
    *joins.RULES,
    *pads.RULES,
    *windows.RULES,
    *reductions.RULES,
    *dots.RULES,
)


@dataclass(frozen=True)
class Movement(RulePass):
    """Merges operations that move data with one another, and with those that can do the moving themselves.

    Before:
        %1 = transpose[permutation=(1,0)] %b
        %2 = dot_general[dimension_numbers=(((1,),(0,)),((),()))] %a %1
        %3 = transpose[permutation=(1,0)] %2
    After:
        %3 = dot_general[dimension_numbers=(((1,),(1,)),((),()))] %b %a

    Transposes, reshapes, broadcasts, slices, concatenations, pads and reversals of one another
    become one operation or none; reductions and matrix products take transposes in. XLA does
    much of this by itself, so what is sure is a smaller graph: less to trace, to lower and to
    compile, and a clear view for other passes. Arrays that carry shardings are left alone.
    Exact, but for sums and products of floating-point numbers that are met in another order.
    """

    name: ClassVar[str] = "movement"
    rules: ClassVar[Sequence[Rule]] = RULES
