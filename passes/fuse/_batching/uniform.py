"""Arrays whose elements are all made of one number."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.facts import number_facts
from lepton_jax.ir.graph import Value

_MOST_STEPS: Final = 8

_COMPARISONS: Final[dict[str, Any]] = {
    **{"eq": operator.eq, "ne": operator.ne, "lt": operator.lt},
    **{"le": operator.le, "gt": operator.gt, "ge": operator.ge},
}

_MOVES: Final = frozenset(
    {"broadcast_in_dim", "convert_element_type", "not", "clamp", "reshape", "squeeze", *_COMPARISONS}
)

Step = tuple[str, Any]


@dataclass(frozen=True)
class Uniform:
    """An array whose elements are all made of one number.

    Attributes:
        source: the number, an array without dimensions.
        steps: what is done to it: an operation and what it needs to know.
    """

    source: Value
    steps: tuple[Step, ...]

    def at(self, number: Any, first: int = 0) -> Any:
        """What the elements are where the source, after its first steps, is this number."""
        for op, extra in self.steps[first:]:
            if op == "not":
                number = not number
            elif op in _COMPARISONS:
                number = _COMPARISONS[op](number, extra)
            elif op == "clamp":
                number = min(max(number, extra[0]), extra[1])
            else:
                number = np.asarray(number).astype(extra).item()
        return number

    @property
    def decided(self) -> int | None:
        """After how many steps it is true or false, if ever."""
        compared = [i for i, (op, _) in enumerate(self.steps) if op in _COMPARISONS]
        if self.source.dtype == bool:
            return 0
        return compared[0] + 1 if compared else None


def uniform(value: Value) -> Uniform | None:
    """How an array is made of one number, if it is."""
    steps: list[Step] = []
    for _ in range(_MOST_STEPS):
        if value.ndim == 0 and not value.is_const:
            return Uniform(value, tuple(reversed(steps)))
        node = value.node
        if node is None or node.op not in _MOVES:
            return None
        operand = node.operands[0]
        if node.op == "not" and value.dtype == bool:
            steps.append(("not", None))
        elif node.op == "convert_element_type" and value.dtype.kind in "iu" and operand.dtype.kind in "biu":
            steps.append(("convert", str(value.dtype)))
        elif node.op in _COMPARISONS:
            wanted = number_facts(node.operands[1]).splat
            if wanted is None:
                return None
            steps.append((node.op, wanted))
        elif node.op == "clamp":
            least, operand, most = node.operands
            bounds = (number_facts(least).splat, number_facts(most).splat)
            if operand.dtype.kind not in "iu" or bounds[0] is None or bounds[1] is None:
                return None
            steps.append(("clamp", (int(bounds[0]), int(bounds[1]))))
        elif node.op not in ("broadcast_in_dim", "reshape", "squeeze") or len(node.operands) != 1:
            return None
        value = operand
    return None


def followed(number: jax.Array, steps: tuple[Step, ...]) -> jax.Array:
    """The number after some steps."""
    for op, extra in steps:
        if op == "not":
            number = lax.bitwise_not(number)
        elif op in _COMPARISONS:
            number = getattr(lax, op)(number, np.asarray(extra, number.dtype))
        elif op == "clamp":
            number = lax.clamp(np.asarray(extra[0], number.dtype), number, np.asarray(extra[1], number.dtype))
        else:
            number = number.astype(extra)
    return number
