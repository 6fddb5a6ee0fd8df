"""What a rule says of an operation: which dimensions of its operands and results go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from lepton_jax.ir.graph import Node

Reduction = Literal["add", "mul", "max", "min", "and", "or"]
Dims = tuple[tuple[int, ...], ...]
"""Of each dimension of an array the factors it is made of, major first; their sizes multiply to its size."""


@dataclass(frozen=True)
class Factors:
    """An operation as an index notation: each factor is an index that runs over its size.

    A device that is given the operands split along a factor computes the same operation on its parts, and
    has the result's part of that factor; a factor of `reduced` leaves it a part of a sum.

    Attributes:
        sizes: of each factor.
        operands: of each operand, of each dimension its factors.
        results: of each result likewise.
        reduced: the factors that no result has, with how the parts of results are joined.
        whole: the factors along which no part can be computed alone: those of a sort, a window, a slice.
        linear: sets of operands; where just those of one set are parts of a sum, and no others, the results
            are parts of the sum of the results.

    Example: `[b, k] @ [k, n]` has the factors 0 = b, 1 = n, 2 = k:
    `Factors((b, n, k), (((0,), (2,)), ((2,), (1,))), (((0,), (1,)),), {2: "add"}, linear=({0}, {1}))`.
    """

    sizes: tuple[int, ...]
    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    reduced: Mapping[int, Reduction] = field(default_factory=dict)
    whole: frozenset[int] = frozenset()
    linear: tuple[frozenset[int], ...] = ()


Rule = Callable[[Node], Factors]
RULES: Final[dict[str, Rule]] = {}


def factor_rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register the rule of operations, by the names of their primitives.

    Raises:
        ValueError: one of them has a rule.
    """

    def register(rule: Rule) -> Rule:
        for op in ops:
            if op in RULES:
                raise ValueError(f"{op} has a factor rule")
            RULES[op] = rule
        return rule

    return register
