"""What each value of a program is to a loop over parts of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from lepton_jax.ir.cutting.cut import CutError, Indices, where
from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.factors import Factors, Reduction


class MicrobatchError(CutError):
    """A program cannot be computed in parts of its batch; the message names the operation and its line."""


@dataclass(frozen=True)
class Part:
    """The value has the examples along a dimension; a round of the loop has its part of it.

    The dimension is `[outer, count, inner]` in one: round i has what stands at i in the middle.

    Attributes:
        dim: which dimension.
        outer: how many times the parts of all rounds follow one another.
    """

    dim: int
    outer: int = 1


@dataclass(frozen=True)
class Sum:
    """The value is added up over the examples; a round of the loop has its share.

    Attributes:
        how: how shares are joined.
    """

    how: Reduction = "add"


@dataclass(frozen=True)
class Late:
    """The value depends on a finished sum: it is computed after the loop."""


State: TypeAlias = Part | Sum | Late | None
"""None: the value does not depend on the batch, and is computed once, before the loop."""

LATE: Final = Late()
INDEXING: Final = frozenset(
    {
        "gather",
        "scatter",
        "scatter-add",
        "scatter-sub",
        "scatter-mul",
        "scatter_mul",
        "scatter-min",
        "scatter-max",
    }
)


@dataclass(frozen=True)
class Factor:
    """Where the examples are among the factors of an operation.

    Attributes:
        index: which factor.
        outer: as of `Part`, within the factor.
    """

    index: int
    outer: int


class Split:
    """A batch in `count` parts."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._indices: dict[tuple[int, int], Indices] = {}

    def locate(self, node: Node, factors: Factors, operand: int, part: Part) -> Factor:
        """The factor of an operation that has the examples of an operand.

        Raises:
            MicrobatchError: no part of the operand's dimension can be computed alone.
        """
        found = self.located(factors, factors.operands[operand], part)
        if found is None:
            raise needs_all(node)
        return found

    def located(self, factors: Factors, dims: Sequence[tuple[int, ...]], part: Part) -> Factor | None:
        """The factor of an array with these dimensions that has the examples; None if it stays whole."""
        position = 1
        for index in dims[part.dim]:
            size = factors.sizes[index]
            if part.outer % position == 0 and size % (part.outer // position * self.count) == 0:
                return None if index in factors.whole else Factor(index, part.outer // position)
            position *= size
        return None

    def part(self, factors: Factors, dims: Sequence[tuple[int, ...]], factor: Factor) -> Part | None:
        """What part of an array with these dimensions goes with a factor."""
        for dim, indices in enumerate(dims):
            if factor.index in indices:
                before = indices[: indices.index(factor.index)]
                return Part(dim, int(np.prod([factors.sizes[i] for i in before], dtype=int)) * factor.outer)
        return None

    def divides(self, value: Value, part: Part) -> bool:
        """Whether a value has parts of this kind."""
        return bool(value.shape[part.dim] % (part.outer * self.count) == 0)

    def indices(self, value: Value, part: Part) -> Indices:
        """The indices of the first round."""
        size = value.shape[part.dim]
        key = size, part.outer
        if key not in self._indices:
            inner = size // (part.outer * self.count)
            starts = np.arange(part.outer, dtype=np.int64)[:, None] * (self.count * inner)
            self._indices[key] = (starts + np.arange(inner, dtype=np.int64)).reshape(-1)
        return self._indices[key]


def needs_all(node: Node) -> MicrobatchError:
    """The error of an operation that sees all examples at once."""
    return MicrobatchError(
        f"{node.op} needs all examples of the batch at once ({where(node)}): the program cannot be computed "
        "in parts of its batch"
    )


def by_number(node: Node) -> MicrobatchError:
    """The error of a gather or a scatter whose indices may be those of other examples."""
    return MicrobatchError(
        f"{node.op} finds examples by their number ({where(node)}): the program cannot be computed in parts "
        "of its batch. Where each example picks of its own, write x[jnp.arange(len(x)), i], or use "
        "jnp.take_along_axis"
    )


def mixes(node: Node, finished: Value) -> MicrobatchError:
    """The error of an operation on examples and on what is added up over all of them."""
    first = maker(finished)
    made = "a sum" if first is None else f"{first.op} ({where(first)})"
    return MicrobatchError(
        f"{node.op} ({where(node)}) computes on each example with what is known only after all of them, from "
        f"{made}, as batch norms, contrastive losses and functions of a mean loss do: the program cannot be "
        f"computed in parts of its batch. {_OF_ONE if _follows_one(node, finished) else _OF_MANY}"
    )


_OF_ONE: Final = (
    "Where it is the gradient of a function of a mean, as its root, take the gradient of the mean itself and "
    "multiply it by the function's derivative"
)
_OF_MANY: Final = (
    "Norms over the features of each example, or statistics that are kept from earlier steps, can be"
)


def _follows_one(node: Node, finished: Value) -> bool:
    """Whether an operation of the backward pass reads what is spread from a single number."""
    waiting, seen = [finished], set[Value]()
    while waiting and "transpose(" in node.scope:
        value = waiting.pop()
        if value in seen or value.is_const:
            continue
        seen.add(value)
        if value.aval.size == 1:
            return True
        if value.node is not None and value.node.op in _PASSING:
            waiting += value.node.operands
    return False


def maker(value: Value) -> Node | None:
    """The operation that a value comes from, without those that only move or scale it."""
    node = value.node
    while node is not None and len(node.operands) >= 1 and node.op in _PASSING:
        before = node.operands[0].node
        if before is None:
            break
        node = before
    return node


_PASSING: Final = frozenset(
    {
        *("broadcast_in_dim", "reshape", "squeeze", "transpose", "convert_element_type"),
        *("div", "mul", "neg", "copy"),
    }
)
