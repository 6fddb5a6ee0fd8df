"""A dot_general read as activations times a weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lepton_jax.ir.graph import Node, Value

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """One operand of a product.

    Attributes:
        value: the array.
        batch: its batch dimensions.
        free: its dimensions that the result has.
        summed: its dimensions that are summed over, in the order of the other operand's.
    """

    value: Value
    batch: Ints
    free: Ints
    summed: Ints

    def sizes(self, dims: Ints) -> Ints:
        """The sizes of some of its dimensions."""
        return tuple(self.value.shape[d] for d in dims)

    @property
    def rows(self) -> int:
        """How many rows it has as a matrix, for each of the batch."""
        return math.prod(self.sizes(self.free))

    def is_laid_out(self, *groups: Ints) -> bool:
        """Whether a reshape alone brings the dimensions into this order: those of size one do not count."""
        order = [d for group in groups for d in group if self.value.shape[d] != 1]
        return order == sorted(order)

    @property
    def is_by_rows(self) -> bool:
        """Whether it is stored as [batch, free, summed], up to a reshape."""
        return self.is_laid_out(self.batch, self.free, self.summed)

    @property
    def is_by_columns(self) -> bool:
        """Whether it is stored as [batch, summed, free], up to a reshape."""
        return self.is_laid_out(self.batch, self.summed, self.free)

    def order(self, *, by_rows: bool) -> Ints:
        """Its dimensions as [batch, free, summed], or else [batch, summed, free]; as they are where equal."""
        tail = (self.free, self.summed) if by_rows else (self.summed, self.free)
        order = (*self.batch, *tail[0], *tail[1])
        return tuple(range(self.value.ndim)) if self.is_laid_out(order) else order


@dataclass(frozen=True)
class Product:
    """A dot_general as activations times a weight.

    Attributes:
        x: the activations.
        weight: the weight.
        x_first: whether the activations are the first operand.
    """

    x: Side
    weight: Side
    x_first: bool

    @property
    def inner(self) -> int:
        """How many numbers are summed up for one of the result."""
        return math.prod(self.x.sizes(self.x.summed))


def product_of(node: Node, weight: int) -> Product:
    """A dot_general with the operand at position `weight` taken as the weight.

    What is summed over is put in the order in which the activations have it: only the weight is turned.
    """
    (summed, batch) = node.params["dimension_numbers"]
    x = 1 - weight
    order = sorted(range(len(summed[x])), key=lambda i: summed[x][i])
    sides = []
    for position in (x, weight):
        value = node.operands[position]
        mine = tuple(summed[position][i] for i in order)
        free = tuple(d for d in range(value.ndim) if d not in mine and d not in batch[position])
        sides.append(Side(value, tuple(batch[position]), free, mine))
    return Product(sides[0], sides[1], x == 0)
