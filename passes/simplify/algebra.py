"""Algebraic identities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.passes.simplify._algebra import (
    additive,
    choice,
    comparison,
    complex_parts,
    convert,
    exponential,
    factors,
    integers,
    logic,
    minmax,
    multiplicative,
    powers,
    reductions,
    unary,
)
from lepton_jax.rewrite import Rule, RulePass

RULES: Final[tuple[Rule, ...]] = (
    *additive.RULES,
    *multiplicative.RULES,
    *integers.RULES,
    *factors.RULES,
    *powers.RULES,
    *exponential.RULES,
    *unary.RULES,
    *minmax.RULES,
    *comparison.RULES,
    *choice.RULES,
    *convert.RULES,
    *logic.RULES,
    *complex_parts.RULES,
    *reductions.RULES,
)


@dataclass(frozen=True)
class Algebra(RulePass):
    """Identities of arithmetic, comparison, choice, conversion and logic, until none applies.

    Before:
        %1 = mul %0 1.0;  %2 = neg %1;  %3 = sub %x %2
    After:
        %3 = add %x %0

    What the levels mean here:

    - `exact`: every bit stays, of NaN, infinities and signed zeros too, unless facts exclude
      them: x * 0 becomes 0 for integers, and for x that is known to be finite and to have no
      minus sign. NaN is one value whatever its bits, and subnormal numbers count as zero, since
      hardware may flush them (XLA does so on CPU).
    - `reassociate`: equal over the real numbers, on the whole domain. The sign of zero and
      rounding may differ. What was finite stays finite; what was infinite or NaN only because
      a step between overflowed may become finite (log(exp(x)) → x), but no rule makes a number
      of infinity or NaN that comes in: x * 0 → 0 and x - x → 0 need x known to be finite. Constants
      of different sign are not merged ((x + a) - a), nor products that are also read elsewhere,
      since programs round and split numbers that way on purpose.

    Derivatives stay what JAX makes of the program as written, also where operands of max are
    equal and at zero: sqrt(x * x) is not |x|, and max(max(x, 0.0), 0.0) stays.

    Attributes:
        level: a tighter limit on the rules' level than the run's.
    """

    name: ClassVar[str] = "algebra"
    rules: ClassVar[Sequence[Rule]] = RULES
