"""Woodbury's formula: solves with a diagonal matrix plus one of low rank."""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.passes.simplify._structure.operators import Reader, Recipe
from lepton_jax.passes.simplify._structure.solving import read_solve
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome


@movement_rule("custom_linear_solve", level="approximate", must_pay=True)
def solve_by_woodbury(node: Node, ctx: PassContext) -> Outcome:
    """solve(D + U @ Vᵀ, b) → y - D⁻¹ U (I + Vᵀ D⁻¹ U)⁻¹ Vᵀ y with y = D⁻¹ b, for diagonal D

    At level `approximate`: rounding errors grow with the condition of D and of the small matrix, which
    may both be worse than that of the sum. D must be known to be diagonal; should it be singular while
    the sum is not, the result is not finite.
    """
    solve = read_solve(node)
    if solve is None:
        return None
    reader = Reader()
    recipe, turned = reader.read(solve.matrix), solve.turned
    if recipe is not None and recipe[0] == "transpose":
        recipe, turned = recipe[1], not turned
    found = low_rank_parts(recipe)
    if found is None:
        return None
    diagonal, left, right, negative = found
    return rewrite(
        _solved,
        solve.right,
        *reader.values,
        diagonal=diagonal,
        factors=(right, left) if turned else (left, right),
        negative=negative,
        axis=solve.axis,
    )


def low_rank_parts(recipe: Recipe | None) -> tuple[Recipe, Recipe, Recipe, bool] | None:
    """The diagonal, U, V, and whether the product is subtracted."""
    match recipe:
        case ("add", a, ("product", left, right)) | ("add", ("product", left, right), a):
            negative = False
        case ("sub", a, ("product", left, right)):
            negative = True
        case _:
            return None
    turned: Recipe = right[1] if right[0] == "transpose" else ("transpose", right)
    if not (_is_diagonal(a) and _is_array(left) and _is_array(turned)):
        return None
    return a, left, turned, negative


def _is_diagonal(recipe: Recipe) -> bool:
    return bool(
        recipe[0] in ("identity", "diagonal") or (recipe[0] == "number" and recipe[2] == ("identity",))
    )


def _is_array(recipe: Recipe) -> bool:
    return bool(recipe[0] == "dense" or (recipe[0] == "transpose" and recipe[1][0] == "dense"))


def _solved(
    right: jax.Array,
    *arrays: jax.Array,
    diagonal: Recipe,
    factors: tuple[Recipe, Recipe],
    negative: bool,
    axis: int,
) -> jax.Array:
    u, v = (array_of(recipe, arrays) for recipe in factors)
    b = jnp.moveaxis(right, axis, 0)
    y, scaled = divided_by(b, diagonal, arrays), divided_by(u, diagonal, arrays)
    scaled = lax.neg(scaled) if negative else scaled
    highest = lax.Precision.HIGHEST
    small = jnp.eye(u.shape[1], dtype=u.dtype) + jnp.matmul(v.T, scaled, precision=highest)
    inner = jnp.linalg.solve(small, jnp.matmul(v.T, y, precision=highest))
    return jnp.moveaxis(y - jnp.matmul(scaled, inner, precision=highest), 0, axis)


def array_of(recipe: Recipe, arrays: tuple[jax.Array, ...]) -> jax.Array:
    """A dense array, or its transpose."""
    return arrays[recipe[1]] if recipe[0] == "dense" else arrays[recipe[1][1]].T


def divided_by(x: jax.Array, diagonal: Recipe, arrays: tuple[jax.Array, ...]) -> jax.Array:
    """The rows of x divided by the numbers on a diagonal."""
    if diagonal[0] == "identity":
        return x
    number = arrays[diagonal[1]]
    return lax.div(x, lax.broadcast_in_dim(number, x.shape, (0,)) if number.ndim else number)


RULES: Final[tuple[Rule, ...]] = (solve_by_woodbury,)
