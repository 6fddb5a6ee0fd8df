"""Products and rows of tables on two factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._matrix import MatrixLayout
from lepton_jax.numerics.low_rank import factorize, singular_values
from lepton_jax.passes.compress._low_rank.form import Factors, Form

Axes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Pair(Form):
    """A weight as matrices, each a product of two.

    Attributes:
        layout: of the weight.
    """

    layout: MatrixLayout

    @property
    def most(self) -> int:
        """The smaller side of the matrices."""
        return min(self.layout.shape(self.shape)[1:])

    def parameters(self, rank: int) -> int:
        """Of both factors."""
        batch, inputs, outputs = self.layout.shape(self.shape)
        return batch * rank * (inputs + outputs)

    def operations(self, rank: int) -> float:
        """As many as parameters."""
        return float(self.parameters(rank))

    @property
    def dense(self) -> float:
        """As many as parameters."""
        return float(math.prod(self.shape))

    def factors(self, weight: jax.Array, hessian: jax.Array | None, rank: int) -> Factors:
        """[batch..., contracted..., rank] and [batch..., rank, outputs...]."""
        left, right = factorize(self._matrix(weight), rank, self._hessian(hessian))
        at = [[self.shape[i] for i in axes] for axes in self._axes]
        return left.reshape(*at[0], *at[1], rank), right.reshape(*at[0], rank, *at[2])

    def weight(self, *factors: jax.Array) -> jax.Array:
        """The products of the factors, as the weight lies."""
        batch, inputs, outputs = self.layout.shape(self.shape)
        left, right = factors
        product = left.reshape(batch, inputs, -1) @ right.reshape(batch, -1, outputs)
        return self.layout.from_matrix(product, self.shape)

    def spectra(self, weight: jax.Array, hessian: jax.Array | None) -> Factors:
        """Of all matrices."""
        return (singular_values(self._matrix(weight), self._hessian(hessian)),)

    def joined(self, left: Factors, right: Factors) -> Factors:
        """Side by side."""
        at = len(self.layout.batch)
        return jnp.concatenate([left[0], right[0]], -1), jnp.concatenate([left[1], right[1]], at)

    def parted(self, factors: Factors, rank: int) -> tuple[Factors, Factors]:
        """The first vectors, and the others."""
        (first, others), at = factors, len(self.layout.batch)
        kept = (first[..., :rank], lax.slice_in_dim(others, 0, rank, axis=at))
        return kept, (first[..., rank:], lax.slice_in_dim(others, rank, None, axis=at))

    @property
    def _axes(self) -> tuple[tuple[int, ...], ...]:
        return self.layout.batch, self.layout.axes, self.layout.outputs(len(self.shape))

    def _matrix(self, weight: jax.Array) -> jax.Array:
        """The weight as one matrix, or as one for each of the batch."""
        matrices = self.layout.to_matrix(weight)
        return matrices if self.layout.batch else matrices[0]

    def _hessian(self, hessian: jax.Array | None) -> jax.Array | None:
        batch, inputs, _ = self.layout.shape(self.shape)
        lead = (batch,) if self.layout.batch else ()
        return None if hessian is None else hessian.reshape(*lead, inputs, inputs)


@dataclass(frozen=True)
class Product(Pair):
    """A `dot_general` as two.

    Attributes:
        side: which operand the weight is.
        dims: the dimension numbers.
        precision: as it was.
        wide: what is summed up in: `preferred_element_type`.
    """

    side: int
    dims: tuple[Axes, Axes]
    precision: Any
    wide: Any

    @property
    def name(self) -> str:
        """In the report."""
        return "two products"

    def apply(self, x: jax.Array, *factors: jax.Array) -> jax.Array:
        """First with the factor on the contracted axes, which makes x small, then with the other."""
        left, right = factors
        (summed, batched), lead = self.dims, len(self.layout.batch)
        rows, stacks = summed[1 - self.side], batched[1 - self.side]
        columns = tuple(range(lead, lead + len(summed[self.side])))
        batches = tuple(range(lead))
        options = {"precision": self.precision, "preferred_element_type": self.wide}
        small: jax.Array = lax.dot_general(x, left, ((rows, columns), (stacks, batches)), **options)
        small = small.astype(right.dtype)
        pair, axes = ((small, right), (small.ndim - 1, lead))
        if self.side == 0:
            pair, axes = ((right, small), (lead, small.ndim - 1))
        return lax.dot_general(*pair, (((axes[0],), (axes[1],)), (batches, batches)), **options)


@dataclass(frozen=True)
class Rows(Pair):
    """Rows of a table as rows of a thin one, times a matrix.

    Attributes:
        places: where the axes of a row stand in the result.
        mode: what happens to indices out of bounds.
        fill: what is put there.
    """

    places: tuple[int, ...]
    mode: Any
    fill: Any

    @property
    def name(self) -> str:
        """In the report."""
        return "rows of a thin table"

    def apply(self, x: jax.Array, *factors: jax.Array) -> jax.Array:
        """Thin rows, where a row that is out of bounds is all NaN or zero, and so is its product."""
        table, matrix = factors
        lead = x.ndim - 1
        numbers = lax.GatherDimensionNumbers((lead,), (0,), (0,))
        taken = lax.gather(table, x, numbers, (1, table.shape[1]), mode=self.mode, fill_value=self.fill)
        made = lax.dot_general(taken, matrix, (((lead,), (0,)), ((), ())))
        others = iter(range(lead))
        order = [lead + self.places.index(i) if i in self.places else next(others) for i in range(made.ndim)]
        return lax.transpose(made, order)
