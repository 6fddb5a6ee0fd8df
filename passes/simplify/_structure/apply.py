"""Applying a matrix by its recipe; see `operators`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.passes.simplify._gather.moves import add_rows
from lepton_jax.passes.simplify._structure.operators import Recipe


def main_diagonal(matrix: jax.Array) -> jax.Array:
    """The elements (i, i) of a square matrix."""
    (length, _) = matrix.shape
    numbers = lax.GatherDimensionNumbers((), (0, 1), (0, 1))
    index = lax.broadcasted_iota(jnp.int32, (length, 2), 0)
    return lax.gather(matrix, index, numbers, (1, 1), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)


class Operator:
    """A matrix that is applied along one axis of an array.

    Attributes:
        arrays: those that the recipe names.
        precision: of the products of matrices.
        accumulate: their preferred_element_type.
    """

    def __init__(self, arrays: Sequence[jax.Array], precision: Any, accumulate: Any) -> None:
        self.arrays = arrays
        self.precision = precision
        self.accumulate = accumulate

    def apply(self, recipe: Recipe, x: jax.Array, axis: int, turned: bool) -> jax.Array:
        """The matrix (or its transpose, if `turned`) times x along an axis."""
        op, *rest = recipe
        made: jax.Array = getattr(self, op)(x, axis, turned, *rest)
        return made

    def identity(self, x: jax.Array, axis: int, turned: bool) -> jax.Array:
        return x

    def diagonal(self, x: jax.Array, axis: int, turned: bool, i: int) -> jax.Array:
        return lax.mul(x, lax.broadcast_in_dim(self.arrays[i], x.shape, (axis,)))

    def main(self, x: jax.Array, axis: int, turned: bool, i: int) -> jax.Array:
        return lax.mul(x, lax.broadcast_in_dim(main_diagonal(self.arrays[i]), x.shape, (axis,)))

    def number(self, x: jax.Array, axis: int, turned: bool, i: int, inner: Recipe) -> jax.Array:
        return lax.mul(self.apply(inner, x, axis, turned), self.arrays[i])

    def neg(self, x: jax.Array, axis: int, turned: bool, inner: Recipe) -> jax.Array:
        return lax.neg(self.apply(inner, x, axis, turned))

    def transpose(self, x: jax.Array, axis: int, turned: bool, inner: Recipe) -> jax.Array:
        return self.apply(inner, x, axis, not turned)

    def add(self, x: jax.Array, axis: int, turned: bool, a: Recipe, b: Recipe) -> jax.Array:
        return lax.add(self.apply(a, x, axis, turned), self.apply(b, x, axis, turned))

    def sub(self, x: jax.Array, axis: int, turned: bool, a: Recipe, b: Recipe) -> jax.Array:
        return lax.sub(self.apply(a, x, axis, turned), self.apply(b, x, axis, turned))

    def product(self, x: jax.Array, axis: int, turned: bool, a: Recipe, b: Recipe) -> jax.Array:
        first, second = (a, b) if turned else (b, a)
        return self.apply(second, self.apply(first, x, axis, turned), axis, turned)

    def outer(self, x: jax.Array, axis: int, turned: bool, i: int, j: int) -> jax.Array:
        column, row = (self.arrays[k] for k in ((j, i) if turned else (i, j)))
        inner = self.dot(row, x, ((0,), (axis,)))
        result = self.dot(column, inner, ((), ()))
        return jnp.moveaxis(result, 0, axis)

    def rows(self, x: jax.Array, axis: int, turned: bool, i: int, length: int) -> jax.Array:
        index = self.arrays[i]
        if not turned:
            return jnp.take(x, lax.squeeze(index, (1,)), axis=axis, mode="clip")
        total = add_rows(jnp.moveaxis(x, axis, 0), lax.squeeze(index, (1,)), length, x.dtype)
        return jnp.moveaxis(total, 0, axis)

    def permutation(self, x: jax.Array, axis: int, turned: bool, rows: tuple[int, ...]) -> jax.Array:
        order = np.argsort(rows) if turned else np.array(rows)
        return jnp.take(x, jnp.asarray(order, jnp.int32), axis=axis, mode="clip")

    def ones(self, x: jax.Array, axis: int, turned: bool, m: int, n: int) -> jax.Array:
        shape = (*x.shape[:axis], n if turned else m, *x.shape[axis + 1 :])
        return jnp.broadcast_to(jnp.sum(x, axis, keepdims=True, dtype=x.dtype), shape)

    def dense(self, x: jax.Array, axis: int, turned: bool, i: int) -> jax.Array:
        matrix = self.arrays[i]
        contract = 0 if turned else 1
        if axis == x.ndim - 1 and x.ndim > 1:
            return self.dot(x, matrix, ((axis,), (contract,)))
        return jnp.moveaxis(self.dot(matrix, x, ((contract,), (axis,))), 0, axis)

    def kron(
        self, x: jax.Array, axis: int, turned: bool, a: Recipe, b: Recipe, sizes: tuple[int, ...]
    ) -> jax.Array:
        p, q, r, s = sizes
        rows, columns = ((p, q), (r, s)) if turned else ((r, s), (p, q))
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        split = lax.reshape(x, (*before, *rows, *after))
        inner = self.apply(b, split, axis + 1, turned)
        outer = self.apply(a, inner, axis, turned)
        return lax.reshape(outer, (*before, math.prod(columns), *after))

    def dot(self, a: jax.Array, b: jax.Array, contract: tuple[tuple[int, ...], tuple[int, ...]]) -> jax.Array:
        return lax.dot_general(
            a, b, (contract, ((), ())), precision=self.precision, preferred_element_type=self.accumulate
        )


def times(
    x: jax.Array,
    *arrays: jax.Array,
    recipe: Recipe,
    axis: int,
    turned: bool,
    first: bool,
    precision: Any,
    accumulate: Any,
) -> jax.Array:
    """What a product with a matrix of known form is: the matrix's other dimension first or last."""
    made = Operator(arrays, precision, accumulate).apply(recipe, x, axis, turned)
    return jnp.moveaxis(made, axis, 0 if first else -1)
