"""Transposes and reversals."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import movement_rule, unplaced
from lepton_jax.rewrite import PassContext, Rule, rewrite, rule
from lepton_jax.rewrite.rule import Outcome

Axes = tuple[int, ...]


def _example() -> list[list[Any]]:
    return [[jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)]]


def in_one_place(node: Node, ctx: PassContext) -> str | None:
    """What is merged stands in one equation context, on arrays without shardings."""
    inner = node.operands[0].node
    if inner is not None and inner.context is not node.context:
        return "the two stand in different contexts (mesh, compute type, metadata)"
    return unplaced(node, ctx)


@rule(_example, attributes={"inner": (1, 0, 2), "outer": (2, 0, 1)}, single_use=False, guard=in_one_place)
def transpose_of_transpose(x: jax.Array, inner: Axes, outer: Axes) -> jax.Array:
    """transpose(transpose(x, p), q) → transpose(x, p[q])"""
    return lax.transpose(lax.transpose(x, inner), outer)


@transpose_of_transpose.replacement
def _transpose_of_transpose(x: jax.Array, inner: Axes, outer: Axes) -> jax.Array:
    return lax.transpose(x, tuple(inner[d] for d in outer))


@rule(_example, attributes={"inner": (0,), "outer": (1,)}, single_use=False, guard=in_one_place)
def rev_of_rev(x: jax.Array, inner: Axes, outer: Axes) -> jax.Array:
    """rev(rev(x, d), e) → rev(x, the dimensions in one of d and e)"""
    return lax.rev(lax.rev(x, inner), outer)


@rev_of_rev.replacement
def _rev_of_rev(x: jax.Array, inner: Axes, outer: Axes) -> jax.Array:
    return reverse(x, dims=tuple(sorted(set(inner) ^ set(outer))))


def reverse(x: jax.Array, *, dims: Axes) -> jax.Array:
    """`x` reversed along `dims`, itself if there are none."""
    return lax.rev(x, dims) if dims else x


@movement_rule("rev")
def rev_of_equals(node: Node, ctx: PassContext) -> Outcome:
    """rev(x, d) → x reversed only along the dimensions of d in which its elements differ

    Nothing changes along a dimension of size zero or one, or one that a broadcast has made.
    """
    x, dims = node.operands[0], node.params["dimensions"]
    uniform = facts_of(x).uniform
    left = tuple(d for d in dims if x.shape[d] > 1 and d not in uniform)
    if len(left) == len(dims):
        return None if dims else x
    return rewrite(reverse, x, dims=left) if left else x


RULES: Final[tuple[Rule, ...]] = (_transpose_of_transpose, _rev_of_rev, rev_of_equals)
