"""Solves with matrices of known form."""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax import lax

from lepton_jax.ir.facts import Band, facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.passes.simplify._structure.apply import main_diagonal
from lepton_jax.passes.simplify._structure.operators import diagonal_vector
from lepton_jax.passes.simplify._structure.solving import read_solve
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_FEWEST_FOR_CHOLESKY: Final = 64
"""Below, the factorisation is not what takes the time."""


@movement_rule("custom_linear_solve", level="reassociate")
def solve_with_triangular(node: Node, ctx: PassContext) -> Outcome:
    """solve(A, b) → b / diagonal(A) for diagonal A, back substitution for triangular A

    Instead of a factorisation, for A that facts show to be of this form.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only structure`.
    """
    solve = read_solve(node)
    if solve is None:
        return None
    numbers = diagonal_vector(solve.matrix)
    facts = facts_of(solve.matrix)
    if facts.diagonal or numbers is not None:
        return rewrite(_divided, solve.matrix if numbers is None else numbers, solve.right, axis=solve.axis)
    if not (facts.lower or facts.upper):
        return None
    matrix = _unmasked(solve.matrix, facts.lower)
    return rewrite(_substituted, matrix, solve.right, axis=solve.axis, turned=solve.turned, lower=facts.lower)


def _unmasked(matrix: Value, lower: bool) -> Value:
    """What a triangular matrix is masked from, if it is just that: substitution reads the triangle alone."""
    node = matrix.node
    if node is None or node.op != "select_n" or len(node.operands) != 3:
        return matrix
    mask, zero, source = node.operands
    wanted = Band(None, 0) if lower else Band(0, None)
    same = facts_of(mask).band == wanted and facts_of(zero).is_zero and source.shape == matrix.shape
    return source if same else matrix


def _divided(matrix: jax.Array, right: jax.Array, axis: int) -> jax.Array:
    numbers = main_diagonal(matrix) if matrix.ndim == 2 else matrix
    if numbers.ndim:
        numbers = lax.broadcast_in_dim(numbers, right.shape, (axis,))
    return lax.div(right, numbers)


def _substituted(matrix: jax.Array, right: jax.Array, axis: int, turned: bool, lower: bool) -> jax.Array:
    columns = jnp.moveaxis(right, axis, 0)
    made = jsl.solve_triangular(matrix, columns, trans=1 if turned else 0, lower=lower)
    return jnp.moveaxis(made, 0, axis)


@movement_rule("custom_linear_solve", level="reassociate", backends=("gpu",))
def solve_with_positive_definite(node: Node, ctx: PassContext) -> Outcome:
    """solve(X.T @ X + c * eye, b) → by Cholesky's factorisation

    For matrices that are Gram matrices plus a positive diagonal, of 64 rows or more. Rounding may leave
    a matrix that is nearly singular without a Cholesky factorisation: then, as the program runs, the
    solve goes by LU as before. Only on a GPU: on a 2-core CPU it was measured to gain nothing, and to
    lose with several right-hand sides.
    """
    solve = read_solve(node)
    if solve is None or solve.matrix.shape[0] < _FEWEST_FOR_CHOLESKY or not _is_positive(solve.matrix):
        return None
    return rewrite(_by_cholesky, solve.matrix, solve.right, axis=solve.axis)


def _is_positive(value: Value) -> bool:
    """Whether a matrix is the sum of a Gram matrix and of a diagonal one with positive numbers."""
    node = value.node
    if node is None or node.op not in ("add", "add_any"):
        return False
    for gram, diagonal in (node.operands, node.operands[::-1]):
        if gram.op == "dot_general" and gram.shape == diagonal.shape == node.result.shape:
            return bool(facts_of(gram).symmetric) and _is_gram(gram) and _is_positive_diagonal(diagonal)
    return False


def _is_gram(value: Value) -> bool:
    node = value.node
    return node is not None and node.operands[0] is node.operands[1]


def _is_positive_diagonal(value: Value) -> bool:
    node = value.node
    if node is None:
        return facts_of(value).identity
    if node.op == "mul":
        a, b = node.operands
        return any(
            facts_of(x).identity and facts_of(y).positive and facts_of(y).finite for x, y in ((a, b), (b, a))
        )
    return facts_of(value).identity


def _by_cholesky(matrix: jax.Array, right: jax.Array, axis: int) -> jax.Array:
    columns = jnp.moveaxis(right, axis, 0)
    factor = lax.linalg.cholesky(matrix, symmetrize_input=False)
    works = jnp.isfinite(factor[-1, -1])  # without a factorisation all of it is NaN
    made: jax.Array = lax.cond(works, _with_factor, _without_factor, matrix, factor, columns)
    return jnp.moveaxis(made, 0, axis)


def _with_factor(matrix: jax.Array, factor: jax.Array, columns: jax.Array) -> jax.Array:
    made: jax.Array = jsl.cho_solve((factor, True), columns)
    return made


def _without_factor(matrix: jax.Array, factor: jax.Array, columns: jax.Array) -> jax.Array:
    made: jax.Array = jnp.linalg.solve(matrix, columns)
    return made


RULES: Final[tuple[Rule, ...]] = (
    solve_with_triangular,
    solve_with_positive_definite,
)
