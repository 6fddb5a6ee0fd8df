"""Structure: products with matrices of known form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir.export import to_callable
from tests.passes._check import optimised, same
from tests.passes._products import (
    Program,
    body,
    check_lookalike,
    check_lookalikes,
    check_program,
    check_programs,
    normal,
    pipeline,
    whole,
)

DOT = "dot_general[dimension_numbers=((({},),({},)),((),())) preferred_element_type=float32]"
PASSES = pipeline("structure")
RULE = "product-with-structure"
S = 64


def shaped(*shapes: tuple[int, ...]) -> Callable[[], tuple[Any, ...]]:
    return lambda: tuple(normal(*shape, seed=i) for i, shape in enumerate(shapes))


def rows() -> tuple[Any, ...]:
    return normal(S, S), jnp.asarray(np.random.default_rng(0).permutation(S), jnp.int32)


def some_rows() -> tuple[Any, ...]:
    return normal(S, S), whole(2 * S, high=S)


ORDER = np.random.default_rng(0).permutation(16)

PROGRAMS = [
    Program("identity", lambda a: jnp.eye(S) @ a, shaped((S, S)), RULE),
    Program("identity-right", lambda a: a @ (2 * jnp.eye(S)), shaped((S, S)), RULE),
    Program("identity-vector", lambda a: jnp.eye(S) @ a, shaped((S,)), RULE),
    Program("diagonal", lambda v, a: jnp.diag(v) @ a, shaped((S,), (S, S)), RULE),
    Program("diagonal-right", lambda v, a: a @ jnp.diag(v), shaped((S,), (S, S)), RULE),
    Program("diagonal-masked", lambda v, a: (v[:, None] * jnp.eye(S)) @ a, shaped((S,), (S, S)), RULE),
    Program("diagonal-part", lambda m, a: jnp.where(jnp.eye(S) == 1, m, 0) @ a, shaped((S, S), (S, S)), RULE),
    Program(
        "diagonals", lambda v, w, a: (jnp.diag(v) - 2 * jnp.diag(w)) @ a, shaped((S,), (S,), (S, S)), RULE
    ),
    Program(
        "batches-on-the-right",
        lambda v, a: jnp.einsum("ij,bjk->ibk", jnp.diag(v), a),
        shaped((S,), (3, S, 5)),
        RULE,
    ),
    Program("permutation", lambda a, p: jnp.eye(S)[p] @ a, rows, RULE),
    Program("rows", lambda a, p: jnp.eye(S)[p] @ a, some_rows, RULE),
    Program("permutation-transposed", lambda a, p: a @ jnp.eye(S)[p], rows, RULE),
    Program("constant-permutation", lambda a: jnp.eye(16)[ORDER] @ a, shaped((16, S)), RULE),
    Program("constant-permutation-right", lambda a: a @ jnp.eye(16)[ORDER], shaped((S, 16)), RULE),
    Program("kron-vector", lambda a, b, v: jnp.kron(a, b) @ v, shaped((16, 12), (9, 10), (120,)), RULE),
    Program("kron-left", lambda a, b, v: v @ jnp.kron(a, b), shaped((16, 12), (9, 10), (5, 144)), RULE),
    Program("kron-identity", lambda b, v: jnp.kron(jnp.eye(16), b) @ v, shaped((9, 10), (160, 3)), RULE),
    Program("low-rank", lambda u, v, x: (jnp.eye(S) + u @ v.T) @ x, shaped((S, 2), (S, 2), (S,)), RULE),
    Program(
        "diagonal-and-low-rank",
        lambda d, u, v, x: x @ (jnp.diag(d) - u @ v.T),
        shaped((S,), (S, 2), (S, 2), (4, S)),
        RULE,
    ),
    Program(
        "diagonal-and-outer",
        lambda d, u, x: (jnp.diag(d) - jnp.outer(u, u)) @ x,
        shaped((S,), (S,), (S, 5)),
        RULE,
    ),
    Program(
        "full-and-low-rank", lambda w, u, v, x: x @ (w + u @ v), shaped((S, S), (S, 2), (2, S), (4, S)), RULE
    ),
    Program("centred", lambda a: (jnp.eye(S) - jnp.ones((S, S)) / S) @ a, shaped((S, S)), RULE),
    Program("centred-right", lambda a: a @ (jnp.eye(S) - 1 / S).T, shaped((4, 5, S)), RULE),
    Program("ones", lambda a: jnp.full((2 * S, S), 3.0) @ a, shaped((S, S)), RULE),
    Program("ridge", lambda a, x: (a + 0.1 * jnp.eye(S)) @ x, shaped((S, S), (S,)), RULE),
]


def test_products_fire_and_keep_the_meaning() -> None:
    check_programs(PROGRAMS, PASSES)


def batched_diagonal(v: jax.Array, a: jax.Array) -> jax.Array:
    return jnp.einsum("bij,bjk->bik", jnp.where(jnp.eye(8) == 1, v[:, :, None], 0), a)


LOOKALIKES = [
    Program("shifted", lambda a: jnp.eye(S, k=1) @ a, shaped((S, S)), RULE, "off the diagonal"),
    Program("wide", lambda a: jnp.eye(S, 2 * S) @ a, shaped((2 * S, 4)), RULE, "not square"),
    Program("triangular", lambda m, a: jnp.tril(m) @ a, shaped((S, S), (S, S)), RULE, "half of it counts"),
    Program("full", lambda a, b: a @ b, shaped((S, S), (S, S)), RULE, "nothing is known"),
    Program(
        "full-rank",
        lambda w, u, v, x: (w + u @ v) @ x,
        shaped((S, S), (S, S), (S, S), (S, S)),
        RULE,
        "no gain",
    ),
    Program(
        "residual",
        lambda w, u, v, x: (w - u @ v) @ x,
        shaped((S, S), (S, 2), (2, S), (S,)),
        RULE,
        "only rounding may be left",
    ),
    Program(
        "less-a-number", lambda u, v, x: (u @ v - 3.0) @ x, shaped((S, 2), (2, S), (S,)), RULE, "may cancel"
    ),
    Program(
        "not-kron",
        lambda a, b, v: (a[:, None, :, None] * b[None, :, None, :]).reshape(192, 90) @ v,
        shaped((16, 12), (9, 10), (90,)),
        RULE,
        "another reshape",
    ),
    Program("full-and-a-number", lambda w, x: (w - 0.5) @ x, shaped((S, S), (S,)), RULE, "digits vanish"),
    Program(
        "row-and-low-rank",
        lambda r, u, v, x: (r + u @ v) @ x,
        shaped((1, S), (S, 2), (2, S), (S,)),
        RULE,
        "a row is no matrix of this shape",
    ),
    Program("batched", batched_diagonal, shaped((3, 8), (3, 8, 5)), RULE, "batches"),
    Program("nonlinear", lambda u, x: jnp.exp(jnp.eye(S)) @ x, shaped((S,), (S,)), RULE, "exp(0) is one"),
]


def test_what_only_looks_alike_stays() -> None:
    check_lookalikes(LOOKALIKES, PASSES)


GRAPHS = [
    (lambda a: jnp.eye(S) @ a, shaped((S, S)), ["return %0"]),
    (
        lambda v, a: jnp.diag(v) @ a,
        shaped((S,), (S, 3)),
        [
            "%2: f32[64,3] = broadcast_in_dim[broadcast_dimensions=(0,) shape=(64,3)] %0",
            "%3: f32[64,3] = mul %1 %2",
            "return %3",
        ],
    ),
    (
        lambda u, v, x: (jnp.eye(S) + u @ v.T) @ x,
        shaped((S, 2), (S, 2), (S,)),
        [
            f"%3: f32[2] = {DOT.format(0, 0)} %1 %2",
            f"%4: f32[64] = {DOT.format(1, 0)} %0 %3",
            "%5: f32[64] = add %2 %4",
            "return %5",
        ],
    ),
]


@pytest.mark.parametrize(("fun", "args", "lines"), GRAPHS)
def test_the_rewritten_graph(fun: Callable[..., Any], args: Callable[[], Any], lines: list[str]) -> None:
    assert body(fun, *args(), passes=PASSES) == lines


def rewritten(fun: Callable[..., Any], *args: Any) -> np.ndarray[Any, Any]:
    return np.asarray(to_callable(optimised(fun, *args, passes=PASSES))(*args)[0])


def test_nan_stays_in_its_row() -> None:
    v, a = normal(S), normal(S, S).at[3, 4].set(jnp.nan).at[5, 6].set(jnp.inf)
    got = rewritten(lambda v, a: jnp.diag(v) @ a, v, a)
    assert np.isnan(got[3, 4]) and np.isinf(got[5, 6])
    assert np.isfinite(got).sum() == S * S - 2


def test_zeros() -> None:
    rule = "product-with-zeros"
    finite = Program("finite", lambda x: jnp.zeros((S, S), int) @ x, lambda: (whole(S, 4, high=9),), rule)
    check_program(finite, PASSES)
    unknown = Program("unknown", lambda x: jnp.zeros((S, S)) @ x, shaped((S, 4)), rule, "x may be infinite")
    check_lookalike(unknown, PASSES)


@pytest.mark.parametrize("dtype", ["int32", "bfloat16"])
def test_other_dtypes(dtype: str) -> None:
    v, a = (10 * normal(S)).astype(dtype), (10 * normal(S, S)).astype(dtype)
    same(lambda v, a: jnp.diag(v) @ a, v, a, passes=PASSES, grad=False)
    assert not any("dot_general" in line for line in body(lambda v, a: jnp.diag(v) @ a, v, a, passes=PASSES))


def test_nothing_to_multiply() -> None:
    same(lambda v, a: jnp.diag(v) @ a, normal(S), normal(S, 0), passes=PASSES)
    same(lambda a: jnp.eye(0) @ a, normal(0, 3), passes=PASSES)


def test_numbers_are_taken_once() -> None:
    text = "\n".join(
        body(lambda v, a: (jnp.diag(v) + jnp.diag(v)) @ a, normal(S), normal(S, 3), passes=PASSES)
    )
    assert "dot_general" not in text
