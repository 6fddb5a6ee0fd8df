"""Determinants of matrices of known form."""

from __future__ import annotations

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir import _jax
from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.passes.simplify._structure.apply import main_diagonal
from lepton_jax.passes.simplify._structure.operators import Reader, Recipe, diagonal_vector
from lepton_jax.passes.simplify._structure.woodbury import array_of, divided_by, low_rank_parts
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome


@movement_rule("custom_jvp_call", level="reassociate")
def determinant_of_triangular(node: Node, ctx: PassContext) -> Outcome:
    """slogdet(A) → sign and logarithm of the diagonal's product, det(A) → the product, for triangular A

    For real matrices of four rows or more that facts show to be triangular or diagonal.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only structure`.
    """
    matrix = _argument(node)
    if matrix is None:
        return None
    facts = facts_of(matrix)
    if not (facts.lower or facts.upper) or (name := _function(node, matrix)) is None:
        return None
    numbers = diagonal_vector(matrix) if facts.diagonal else None
    source = numbers if numbers is not None and numbers.ndim == 1 else matrix
    return rewrite(_determinant if name == "det" else _sign_and_logarithm, source)


@movement_rule("custom_jvp_call", level="reassociate")
def determinant_of_kronecker_product(node: Node, ctx: PassContext) -> Outcome:
    """slogdet(kron(A, B)) → m · slogdet(A) + n · slogdet(B), for A of n rows and B of m rows

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only structure`.
    """
    matrix = _argument(node)
    if matrix is None or matrix.op != "reshape" or len(node.results) != 2:
        return None
    reader = Reader()
    match reader.read(matrix):
        case ("kron", ("dense", int(i)), ("dense", int(j)), sizes) if sizes[0] == sizes[2]:
            pair = reader.values[i], reader.values[j]
            return rewrite(_of_kronecker, *pair) if _function(node, matrix) == "slogdet" else None
    return None


@movement_rule("custom_jvp_call", level="approximate", must_pay=True)
def determinant_of_low_rank(node: Node, ctx: PassContext) -> Outcome:
    """slogdet(D + U @ Vᵀ) → slogdet(D) · slogdet(I + Vᵀ D⁻¹ U), for diagonal D

    The matrix determinant lemma, at level `approximate` for the reasons of `solve-by-woodbury`.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only structure`.
    """
    matrix = _argument(node)
    if matrix is None or matrix.op not in ("add", "sub", "add_any") or len(node.results) != 2:
        return None
    reader = Reader()
    found = low_rank_parts(reader.read(matrix))
    if found is None or _function(node, matrix) != "slogdet":
        return None
    diagonal, left, right, negative = found
    return rewrite(
        _of_low_rank,
        *reader.values,
        diagonal=diagonal,
        factors=(left, right),
        negative=negative,
        length=matrix.shape[0],
    )


def _argument(node: Node) -> Value | None:
    """The real matrix of four rows or more that a function that may be det or slogdet is called with."""
    if len(node.operands) != 1 or any(value.ndim for value in node.results):
        return None
    matrix = node.operands[0]
    if matrix.ndim != 2 or matrix.shape[0] < 4 or matrix.shape[0] != matrix.shape[1]:
        return None
    return matrix if np.issubdtype(matrix.dtype, np.floating) else None


def _function(node: Node, matrix: Value) -> str | None:
    """Which of the two functions it is, if it is what JAX's traces to."""
    name = "det" if len(node.results) == 1 else "slogdet"
    said = None if node.regions[0].jaxpr is None else str(node.regions[0].jaxpr)
    return name if said == _reference(name, matrix.shape[0], matrix.dtype, _jax.x64_enabled()) else None


@functools.lru_cache(maxsize=64)
def _reference(name: str, length: int, dtype: Any, x64: bool) -> str | None:
    """The text of what JAX's function traces to."""
    matrix = jax.ShapeDtypeStruct((length, length), dtype)
    graph = from_jaxpr(jax.make_jaxpr(getattr(jnp.linalg, name))(matrix))
    for node in graph.walk():
        if node.op == "custom_jvp_call":
            return str(node.regions[0].jaxpr)
    return None


def _diagonal(array: jax.Array) -> jax.Array:
    return main_diagonal(array) if array.ndim == 2 else array


def _sign_and_logarithm(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """From a matrix or from its main diagonal."""
    return _of_numbers(_diagonal(array))


def _of_numbers(numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.prod(jnp.sign(numbers)), jnp.sum(jnp.log(jnp.abs(numbers)))


def _of_kronecker(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    one, two = jnp.linalg.slogdet(a), jnp.linalg.slogdet(b)
    n, m = a.shape[0], b.shape[0]
    return one[0] ** m * two[0] ** n, m * one[1] + n * two[1]


def _of_low_rank(
    *arrays: jax.Array, diagonal: Recipe, factors: tuple[Recipe, Recipe], negative: bool, length: int
) -> tuple[jax.Array, jax.Array]:
    u, v = (array_of(recipe, arrays) for recipe in factors)
    scaled = divided_by(lax.neg(u) if negative else u, diagonal, arrays)
    inner = jnp.eye(u.shape[1], dtype=u.dtype) + jnp.matmul(v.T, scaled, precision=lax.Precision.HIGHEST)
    one = _of_numbers(divided_by(jnp.ones(length, u.dtype), diagonal, arrays))
    two = jnp.linalg.slogdet(inner)
    return one[0] * two[0], two[1] - one[1]


def _determinant(array: jax.Array) -> jax.Array:
    """The product by logarithms, which do not overflow on the way; with a zero directly, for the gradient."""
    numbers = _diagonal(array)
    singular = jnp.any(numbers == 0)
    one = jnp.ones_like(numbers)
    sign, logarithm = _of_numbers(jnp.where(singular, one, numbers))
    product = jnp.prod(jnp.where(singular, numbers, one))
    return jnp.where(singular, product, sign * jnp.exp(logarithm))


RULES: Final[tuple[Rule, ...]] = (
    determinant_of_triangular,
    determinant_of_kronecker_product,
    determinant_of_low_rank,
)
