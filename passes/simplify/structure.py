"""Matrices of known form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from lepton_jax.passes.simplify._structure import batched, determinants, inverses, products, solves, woodbury
from lepton_jax.rewrite import Rule, RulePass

RULES: Final[tuple[Rule, ...]] = (
    *products.RULES,
    *batched.RULES,
    *inverses.RULES,
    *solves.RULES,
    *woodbury.RULES,
    *determinants.RULES,
)


@dataclass(frozen=True)
class Structure(RulePass):
    """Products, solves and determinants of matrices of known form: diagonal, triangular, low rank and others.

    Before:
        %5 = select_n (iota == iota) 0.0 %v;  %6 = dot_general %5 %A
    After:
        %6 = mul %v %A

    All rules are at level `reassociate`, but Woodbury's formula at `approximate`. A product with the zeros
    of such a matrix is read as zero: what was infinite or NaN only because a zero met an infinite
    or NaN element, may become finite. Nothing that was finite becomes infinite or NaN.

    Attributes:
        level: a tighter limit on the rules' level than the run's.
    """

    name: ClassVar[str] = "structure"
    rules: ClassVar[Sequence[Rule]] = RULES
