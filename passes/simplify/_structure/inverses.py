"""Inverses that are only multiplied with."""

from __future__ import annotations

import math
from typing import Final

import jax
import jax.numpy as jnp

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import is_free, movement_rule
from lepton_jax.passes.simplify._structure.solving import Solve, read_solves
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.replacement import Rewrite
from lepton_jax.rewrite.rule import Outcome

_MOST_PRODUCTS: Final = 8


@movement_rule("dot_general", level="reassociate", must_pay=True)
def product_with_inverse(node: Node, ctx: PassContext) -> Outcome:
    """inv(A) @ b → solve(A, b), b @ inv(A) → solve(A.T, b.T).T

    Where nothing else needs the inverse, and b has fewer columns than A; also of batches, as vmap makes them.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only structure`.
    """
    found = _inverse_in(node)
    return None if found is None else _solve_instead(node, *found)


@movement_rule("dot_general", level="reassociate")
def products_with_inverse(node: Node, ctx: PassContext) -> Outcome:
    """inv(A) @ b, inv(A) @ c → solve(A, b), solve(A, c), which share the factorisation

    Where all that is made of the inverse are products, of at most half as many columns in all as A has.
    """
    found = _inverse_in(node)
    if found is None:
        return None
    side, solve = found
    uses = node.operands[side].uses
    if not 2 <= len(uses) <= _MOST_PRODUCTS:
        return None
    columns = 0
    for user, place in uses:
        if not isinstance(user, Node) or user.op != "dot_general" or _inverse_in(user) is None:
            return None
        columns += _columns(user, place)
    return _solve_instead(node, side, solve) if 2 * columns <= solve.matrix.shape[-1] else None


def _columns(node: Node, place: int) -> int:
    contract, batch = node.params["dimension_numbers"]
    other, side = node.operands[1 - place], 1 - place
    inner = {*contract[side], *batch[side]}
    return math.prod(n for d, n in enumerate(other.shape) if d not in inner)


def _inverse_in(node: Node) -> tuple[int, Solve] | None:
    """Which operand of a product of matrices, or of batches of them, is an inverse."""
    contract, batch = node.params["dimension_numbers"]
    if len(contract[0]) != 1:
        return None
    for side in (0, 1):
        inverse, other = node.operands[side], node.operands[1 - side]
        if inverse.op != "custom_linear_solve" or inverse.node is None:
            continue
        solve = read_solves(inverse.node)
        rank = len(batch[0])
        if solve is None or solve.right.ndim != rank + 2 or solve.matrix.ndim != rank + 2:
            return None
        each = tuple(range(rank))
        if tuple(batch[side]) != each or other.ndim > rank + 2 or not _is_identity(solve.right, rank):
            return None
        if not is_free(node) or not other.dtype == solve.matrix.dtype == node.result.dtype:
            return None
        return side, solve
    return None


def _is_identity(value: Value, rank: int) -> bool:
    """Whether a value is the identity, or one for each member of a batch."""
    node = value.node
    if rank and node is not None and node.op == "broadcast_in_dim":
        places = tuple(map(int, node.params["broadcast_dimensions"]))
        return places == (rank, rank + 1) and bool(facts_of(node.operands[0]).identity)
    return rank == 0 and bool(facts_of(value).identity)


def _solve_instead(node: Node, side: int, solve: Solve) -> Rewrite:
    contract, batch = node.params["dimension_numbers"]
    return rewrite(
        solved,
        solve.matrix,
        node.operands[1 - side],
        turned=(contract[side][0] == solve.axis) != solve.turned,
        axis=int(contract[1 - side][0]),
        batch=tuple(map(int, batch[1 - side])),
        first=side == 0,
    )


def solved(
    matrix: jax.Array, right: jax.Array, *, turned: bool, axis: int, batch: tuple[int, ...], first: bool
) -> jax.Array:
    """The solutions with a matrix, or its transpose, along an axis, in the layout of the product."""
    rank = len(batch)
    columns = jnp.moveaxis(right, (*batch, axis), range(rank + 1))
    alone = columns.ndim == rank + 1
    matrix = jnp.swapaxes(matrix, -1, -2) if turned else matrix
    made: jax.Array = jnp.linalg.solve(matrix, columns[..., None] if alone and rank else columns)
    if alone:
        return made[..., 0] if rank else made
    return made if first else jnp.moveaxis(made, rank, -1)


RULES: Final[tuple[Rule, ...]] = (product_with_inverse, products_with_inverse)
