"""Gradients: what differentiation leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.passes.simplify._gradients import sums, terms, weighted, zeros
from lepton_jax.rewrite import Rule, RulePass

RULES: Final[tuple[Rule, ...]] = (*sums.RULES, *zeros.RULES, *weighted.RULES, *terms.RULES)


@dataclass(frozen=True)
class Gradients(RulePass):
    """Takes the zeros out of gradients, and shares the work of norms.

    Before:
        %1 = pad[padding_config=((0,8,0),)] %x 0.0;  %2 = pad[padding_config=((8,0,0),)] %y 0.0
        %3 = add_any %1 %2
    After:
        %3 = concatenate[dimension=0] %x %y

    The gradient of a slice is padded with zeros. Such parts of one array are put side by side, and what
    is done to padded arrays is done to what is in the middle: a product with zeros is not computed. With
    `demand` a loss of the last token is differentiated at the last token alone.

    On a CPU the two sums in the gradient of an RMS or layer norm share one product (`sum-of-weighted`).
    Level `reassociate`.
    """

    name: ClassVar[str] = "gradients"
    rules: ClassVar[Sequence[Rule]] = RULES
