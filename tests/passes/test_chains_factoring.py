"""Chains: matrices taken out of sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.export import to_callable
from tests.passes._check import fired, optimised
from tests.passes._products import Program, body, check_lookalikes, check_programs, normal, pipeline

DOT = "dot_general[dimension_numbers=((({},),({},)),((),())) preferred_element_type=float32]"
PASSES = pipeline("chains")
RULE = "common-matrix"
S = 96


def three() -> tuple[jax.Array, ...]:
    return normal(S, S), normal(S, S, seed=1), normal(S, S, seed=2)


def batches() -> tuple[jax.Array, ...]:
    return normal(4, S, S), normal(4, S, S, seed=1), normal(4, S, S, seed=2)


PROGRAMS = [
    Program("left", lambda a, b, c: a @ b + a @ c, three, RULE),
    Program("right", lambda a, b, c: a @ b + c @ b, three, RULE),
    Program("difference", lambda a, b, c: a @ b - a @ c, three, RULE),
    Program("numbers", lambda a, b, c: 3.0 * (a @ b) - a @ c * 0.5, three, RULE),
    Program("traced-number", lambda a, b, c: c[0, 0] * (a @ b) + a @ c, three, RULE),
    Program("both-negative", lambda a, b, c: -(a @ b) - a @ c, three, RULE),
    Program("negative-first", lambda a, b, c: -(a @ b) + a @ c, three, RULE),
    Program("transposed", lambda a, b, c: a @ b + a @ c.T, three, RULE),
    Program("batched", lambda a, b, c: jnp.matmul(a, b) + jnp.matmul(a, c), batches, RULE),
    Program("three-terms", lambda a, b, c: a @ b + a @ c + a @ (b * c), three, RULE),
]


def test_factoring_fires_and_keeps_the_meaning() -> None:
    check_programs(PROGRAMS, PASSES)


def vector() -> tuple[jax.Array, ...]:
    return normal(S, S), normal(S), normal(S, seed=1)


LOOKALIKES = [
    Program("different", lambda a, b, c: a @ b + b @ c, three, RULE, "no matrix is on the same side"),
    Program("sides", lambda a, b, c: a @ b + c @ a, three, RULE, "the common matrix is on different sides"),
    Program("transposed-common", lambda a, b, c: a @ b + a.T @ c, three, RULE, "one is transposed"),
    Program(
        "shared",
        lambda a, b, c: ((a @ b) + a @ c, jnp.tanh(a @ b)),
        three,
        RULE,
        "a product is needed elsewhere",
    ),
    Program("nonlinear", lambda a, b, c: a @ b + jnp.tanh(a @ c), three, RULE, "tanh stands between"),
]


def test_what_only_looks_alike_stays() -> None:
    check_lookalikes(LOOKALIKES, PASSES)


def test_the_rewritten_graph() -> None:
    assert body(lambda a, b, c: a @ b - a @ c, *three(), passes=PASSES) == [
        "%3: f32[96,96] = sub %1 %2",
        f"%4: f32[96,96] = {DOT.format(1, 0)} %0 %3",
        "return %4",
    ]


def test_a_vector_common_to_both() -> None:
    def fun(a: jax.Array, c: jax.Array, v: jax.Array) -> jax.Array:
        return v @ a + c @ v

    args = (normal(S, S), normal(S, S, seed=1), normal(S))
    got = to_callable(optimised(fun, *args, passes=PASSES))(*args)[0]
    np.testing.assert_allclose(got, fun(*args), rtol=1e-3, atol=1e-3)


def test_integers_are_exact() -> None:
    numbers = np.random.default_rng(0)
    args = tuple(jnp.asarray(numbers.integers(-(2**31), 2**31, (S, S)), jnp.int32) for _ in range(3))

    def fun(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        return a @ b - a @ c

    assert RULE in fired(fun, *args, passes=PASSES)
    np.testing.assert_array_equal(
        to_callable(optimised(fun, *args, passes=PASSES))(*args)[0], jax.jit(fun)(*args)
    )


def test_half_precision_stays() -> None:
    args = tuple(m.astype(jnp.float16) for m in three())
    assert RULE not in fired(lambda a, b, c: a @ b + a @ c, *args, passes=PASSES)
