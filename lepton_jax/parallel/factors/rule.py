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
        >>> linear = (frozenset({0}), frozenset({1}))
        >>> dot = Factors((4, 2, 8), (((0,), (2,)), ((2,), (1,))), (((0,), (1,)),), {2: "add"}, linear=linear)
        >>> str(dot)
        '(ac, cb) -> (ab) add c'
    """

    sizes: tuple[int, ...]
    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    reduced: Mapping[int, Reduction] = field(default_factory=dict)
    whole: frozenset[int] = frozenset()
    linear: tuple[frozenset[int], ...] = ()

    def __str__(self) -> str:
        """In letters, as Shardy writes it: `(ac, cb) -> (ab) add c`; `-` has none, `()` no dimension."""
        text = f"{_written(self.operands)} -> {_written(self.results)}"
        for how in dict.fromkeys(self.reduced.values()):
            text += f" {how} {''.join(_letter(i) for i, each in self.reduced.items() if each == how)}"
        return text + (f" whole {''.join(map(_letter, sorted(self.whole)))}" if self.whole else "")


def _letter(factor: int) -> str:
    return chr(ord("a") + factor) if factor < 26 else f"<{factor}>"


def _written(arrays: tuple[Dims, ...]) -> str:
    """Arrays between commas, their dimensions, those of several factors in brackets."""
    texts = []
    for dims in arrays:
        parts = ["".join(map(_letter, each)) or "-" for each in dims]
        pairs = zip(parts, dims, strict=True)
        texts.append("".join(part if len(each) < 2 else f"[{part}]" for part, each in pairs) or "()")
    return f"({', '.join(texts)})"


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
