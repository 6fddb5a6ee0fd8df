"""Chains of matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.passes.simplify._chains import factoring, reorder
from lepton_jax.rewrite import Rule, RulePass

RULES: Final[tuple[Rule, ...]] = (*factoring.RULES, *reorder.RULES)


@dataclass(frozen=True)
class Chains(RulePass):
    """Multiplies matrices in the cheapest order, takes common matrices out of sums, scales the small side.

    Before:
        %3 = dot_general %A %B;  %4 = dot_general %3 %v
    After:
        %3 = dot_general %B %v;  %4 = dot_general %A %3

    What counts is the target's estimate of the whole chain, in a loop with what is the same on every
    iteration counted once. All rules are at level `reassociate`: equal over the real numbers, and for
    integers equal. Numbers that are finite in the program's order stay finite unless a product of some
    of the matrices overflows that the program did not form; float16, where that is easy, is left alone.

    Attributes:
        level: a tighter limit on the rules' level than the run's.
    """

    name: ClassVar[str] = "chains"
    rules: ClassVar[Sequence[Rule]] = RULES
