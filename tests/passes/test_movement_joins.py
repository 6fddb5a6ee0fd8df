"""Movement: concatenations, stacks, and what takes them apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests.passes._check import bitwise
from tests.passes._movement import Case, Lookalike, array, body, check_case, check_lookalike, check_meaning

V = ((8,),)
M = ((4, 3),)

CASES = [
    Case("slice-of-stack", lambda x, y: jnp.stack([x, y], axis=1)[:, 1], (*M, *M), ("return %1",)),
    Case(
        "slice-of-stack",
        lambda x, y: jnp.stack([x, y])[:1, 1:3],
        (*M, *M),
        (
            "%2: f32[2,3] = slice[limit_indices=(3,3) start_indices=(1,0)] %0",
            "%3: f32[1,2,3] = broadcast_in_dim[broadcast_dimensions=(1,2) shape=(1,2,3)] %2",
            "return %3",
        ),
    ),
    Case("concatenate-of-empty", lambda x: lax.concatenate_p.bind(x, dimension=0), M, ("return %0",)),
    Case(
        "concatenate-of-empty",
        lambda x, y: lax.concatenate([x, y, x], 0),
        (*M, (0, 3)),
        ("%2: f32[8,3] = concatenate[dimension=0] %0 %0", "return %2"),
    ),
    Case("concatenate-of-empty", lambda x, y: lax.concatenate([x, y, y], 0), (*M, (0, 3)), ("return %0",)),
    Case("concatenate-of-empty", lambda y: lax.concatenate([y, y], 0), ((0, 3),), ("return %0",)),
    Case(
        "concatenate-of-concatenate",
        lambda x, y: lax.concatenate([y, lax.concatenate([x, y], 0), x], 0),
        (*M, *M),
        ("%2: f32[16,3] = concatenate[dimension=0] %1 %0 %1 %0", "return %2"),
    ),
    Case("concatenate-of-adjacent", lambda x: lax.concatenate([x[:3], x[3:]], 0), V, ("return %0",)),
    Case(
        "concatenate-of-adjacent",
        lambda x: lax.concatenate([x[1:3], x[3:6], x[:1]], 0),
        V,
        (
            "%1: f32[1] = slice[limit_indices=(1,) start_indices=(0,)] %0",
            "%2: f32[5] = slice[limit_indices=(6,) start_indices=(1,)] %0",
            "%3: f32[6] = concatenate[dimension=0] %2 %1",
            "return %3",
        ),
    ),
    Case(
        "concatenate-of-adjacent",
        lambda x: lax.concatenate([x[1:3, :2], x[1:3, 2:]], 1),
        M,
        ("%1: f32[2,3] = slice[limit_indices=(3,3) start_indices=(1,0)] %0", "return %1"),
    ),
    Case("concatenate-of-adjacent", lambda x: lax.concatenate(lax.split(x, (1, 3)), 0), M, ("return %0",)),
    Case("slice-of-concatenate", lambda x, y: lax.concatenate([x, y], 0)[:8], (*V, *V), ("return %0",)),
    Case(
        "slice-of-concatenate",
        lambda x, y: lax.concatenate([x, y], 0)[9:15:2],
        (*V, *V),
        ("%2: f32[3] = slice[limit_indices=(7,) start_indices=(1,) strides=(2,)] %1", "return %2"),
    ),
    Case(
        "slice-of-concatenate",
        lambda x, y: lax.concatenate([x, y], 1)[1:, 3:5],
        (*M, *M),
        ("%2: f32[3,2] = slice[limit_indices=(4,2) start_indices=(1,0)] %1", "return %2"),
    ),
    Case(
        "slice-of-concatenate",
        lambda x, y, z: lax.concatenate([x, y, z], 0)[:10],
        (*V, *V, *V),
        (
            "%3: f32[2] = slice[limit_indices=(2,) start_indices=(0,)] %1",
            "%4: f32[10] = concatenate[dimension=0] %0 %3",
            "return %4",
        ),
    ),
    Case(
        "split-of-concatenate",
        lambda x, y: lax.split(lax.concatenate([x, y], 0), (8, 3)),
        (*V, (3,)),
        ("return %0, %1",),
    ),
    Case("split-in-one", lambda x: lax.split_p.bind(x, sizes=(8,), axis=0)[0], V, ("return %0",)),
    Case(
        "unstack-of-stack",
        lambda x, y: jnp.unstack(jnp.stack([x, y], 1), axis=1),
        (*M, *M),
        ("return %0, %1",),
    ),
    Case("stack-of-unstack", lambda x: jnp.stack(jnp.unstack(x, axis=1), axis=1), M, ("return %0",)),
    Case("tile-once", lambda x: jnp.tile(x, (1, 1)), M, ("return %0",)),
]

LOOKALIKES = [
    Lookalike("slice-of-stack", "it takes two", lambda x, y: jnp.stack([x, y, x])[:2], (*M, *M)),
    Lookalike("concatenate-of-empty", "no piece is empty", lambda x: lax.concatenate([x, x], 0), M),
    Lookalike(
        "concatenate-of-concatenate",
        "the axes differ",
        lambda x: lax.concatenate([lax.concatenate([x, x], 1)] * 2, 0),
        M,
    ),
    Lookalike(
        "concatenate-of-concatenate",
        "the inner one is read twice",
        lambda x: (lambda y: lax.concatenate([y, y], 0))(lax.concatenate([x, -x], 0)),
        M,
    ),
    Lookalike("concatenate-of-adjacent", "they overlap", lambda x: lax.concatenate([x[:3], x[2:]], 0), V),
    Lookalike(
        "concatenate-of-adjacent",
        "they are in the wrong order",
        lambda x: lax.concatenate([x[3:], x[:3]], 0),
        V,
    ),
    Lookalike(
        "concatenate-of-adjacent",
        "they differ along another axis",
        lambda x: lax.concatenate([x[:2, :2], x[2:, 1:]], 0),
        M,
    ),
    Lookalike(
        "concatenate-of-adjacent", "the axis is another", lambda x: lax.concatenate([x[:2], x[2:]], 1), M
    ),
    Lookalike(
        "concatenate-of-adjacent",
        "the arrays differ",
        lambda x, y: lax.concatenate([x[:3], y[3:]], 0),
        (*V, *V),
    ),
    Lookalike(
        "concatenate-of-adjacent",
        "a stride leaves elements out",
        lambda x: lax.concatenate([x[:4:2], x[4:]], 0),
        V,
    ),
    Lookalike(
        "slice-of-concatenate",
        "it touches every piece",
        lambda x, y: lax.concatenate([x, y], 0)[5:10],
        (*V, *V),
    ),
    Lookalike(
        "slice-of-concatenate",
        "the concatenation is read elsewhere",
        lambda x, y: (lambda c: (c, c[:18]))(lax.concatenate([x, y, x], 0)),
        (*V, *V),
    ),
    Lookalike(
        "slice-of-concatenate",
        "two pieces would be cut",
        lambda x, y: lax.concatenate([x, y, x], 0)[4:12],
        (*V, *V),
    ),
    Lookalike(
        "slice-of-concatenate",
        "every piece would be sliced",
        lambda x, y: lax.concatenate([x, y, x], 0)[:8, 1:],
        (*M, *M),
    ),
    Lookalike(
        "split-of-concatenate",
        "the cut is elsewhere",
        lambda x, y: lax.split(lax.concatenate([x, y], 0), (6, 10)),
        (*V, *V),
    ),
    Lookalike(
        "split-of-concatenate",
        "the axis is another",
        lambda x: lax.split(lax.concatenate([x, x], 0), (3, 3), axis=1),
        ((3, 6),),
    ),
    Lookalike(
        "unstack-of-stack",
        "the axis is another",
        lambda x, y: jnp.unstack(jnp.stack([x, y], 1), axis=0),
        ((2, 3), (2, 3)),
    ),
    Lookalike("stack-of-unstack", "the order is another", lambda x: jnp.stack(jnp.unstack(x)[::-1]), M),
    Lookalike("stack-of-unstack", "one is left out", lambda x: jnp.stack(jnp.unstack(x)[:3]), M),
    Lookalike("tile-once", "it tiles twice", lambda x: jnp.tile(x, (2, 1)), M),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fires(case: Case) -> None:
    check_case(case)


def test_what_fires_keeps_the_meaning() -> None:
    check_meaning(CASES)


@pytest.mark.parametrize("case", LOOKALIKES, ids=lambda case: f"{case.rule}: {case.why}")
def test_does_not_fire(case: Lookalike) -> None:
    check_lookalike(case)


def test_a_long_chain_of_concatenations_is_not_flattened_without_end() -> None:
    def chain(x: jax.Array) -> jax.Array:
        y = x
        for _ in range(200):
            y = lax.concatenate([y, x], 0)
        return y

    lines = body(chain, array((1,)))
    assert len(lines) < 12
    assert max(line.count("%") for line in lines) <= 67
    bitwise(chain, array((1,)), passes="movement")
