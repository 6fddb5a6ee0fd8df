"""One-hot arrays and masks as gathers and scatters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.passes.simplify._gather import classes, masked, picks, products, stacks
from lepton_jax.rewrite import Rule, RulePass

RULES: Final[tuple[Rule, ...]] = (
    *products.RULES,
    *picks.RULES,
    *classes.RULES,
    *stacks.RULES,
    *masked.RULES,
)


@dataclass(frozen=True)
class Gather(RulePass):
    """Reads and adds up rows by index where the program multiplies with one-hot arrays or masks.

    Before:
        %2 = eq %i (iota);  %3 = convert_element_type %2;  %4 = dot_general %3 %T
    After:
        %4 = gather[fill_value=0] %T %i

    An index that is no position has a row of zeros in a one-hot array: it takes zeros, and adds nowhere.

    All rules are at level `reassociate`. A product with zeros is read as zero: what was
    infinite or NaN only because a zero of the one-hot array met an infinite or NaN element, may
    become finite. What the index picks comes through as it is, NaN and infinities too.

    The rules fire on CPU and GPU; on a TPU, products with one-hot arrays are the better form.

    Attributes:
        level: a tighter limit on the rules' level than the run's.
    """

    name: ClassVar[str] = "gather"
    rules: ClassVar[Sequence[Rule]] = RULES
