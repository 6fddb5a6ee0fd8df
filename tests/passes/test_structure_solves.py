"""Structure: inverses, solves and determinants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.numpy import linalg

from lepton_jax.ir.export import to_callable
from tests.passes._check import fired, optimised, same
from tests.passes._products import Program, body, check_lookalikes, check_programs, normal, pipeline, rules

PASSES = pipeline("structure")
INVERSE, TRIANGULAR, POSITIVE = (
    "product-with-inverse",
    "solve-with-triangular",
    "solve-with-positive-definite",
)
DETERMINANT = "determinant-of-triangular"
S = 48


def regular(*shapes: tuple[int, ...]) -> Callable[[], tuple[Any, ...]]:
    """A matrix far from singular, and other arrays."""
    return lambda: (
        normal(S, S) / S + jnp.eye(S),
        *(normal(*shape, seed=i) for i, shape in enumerate(shapes)),
    )


def positive() -> tuple[Any, ...]:
    return jnp.abs(normal(S)) + 1.0, normal(S, 3)


def lower(a: jax.Array) -> jax.Array:
    return jnp.tril(a)


PROGRAMS = [
    Program("inverse-vector", lambda a, b: linalg.inv(a) @ b, regular((S,)), INVERSE),
    Program("inverse-matrix", lambda a, b: linalg.inv(a) @ b, regular((S, 3)), INVERSE),
    Program("inverse-right", lambda a, b: b @ linalg.inv(a), regular((3, S)), INVERSE),
    Program("inverse-transposed", lambda a, b: linalg.inv(a).T @ b, regular((S, 3)), INVERSE),
    Program("quadratic-form", lambda a, b: b @ linalg.inv(a) @ b, regular((S,)), INVERSE),
    Program("triangular", lambda a, b: linalg.solve(lower(a), b), regular((S,)), TRIANGULAR),
    Program("triangular-transposed", lambda a, b: linalg.solve(lower(a).T, b), regular((S, 3)), TRIANGULAR),
    Program("triangular-inverse", lambda a, b: linalg.inv(jnp.triu(a)) @ b, regular((S,)), TRIANGULAR),
    Program("diagonal", lambda v, b: linalg.solve(jnp.diag(v), b), positive, TRIANGULAR),
    Program("multiple-of-identity", lambda v, b: linalg.solve(v[0] * jnp.eye(S), b), positive, TRIANGULAR),
    Program("diagonal-inverse", lambda v, b: linalg.inv(jnp.diag(v)) @ b, positive, TRIANGULAR),
    Program("slogdet", lambda a: linalg.slogdet(lower(a)), regular(), DETERMINANT),
    Program("logdet-of-diagonal", lambda v, b: linalg.slogdet(jnp.diag(v))[1], positive, DETERMINANT),
    Program("det", lambda a: linalg.det(lower(a)), regular(), DETERMINANT),
]


def test_rules_fire_and_keep_the_meaning() -> None:
    check_programs(PROGRAMS, PASSES)


def conjugate_gradients(a: jax.Array, b: jax.Array) -> Any:
    return jax.scipy.sparse.linalg.cg(lambda x: lower(a) @ lower(a).T @ x, b)[0]


def small_solve(a: jax.Array, b: jax.Array) -> Any:
    """A solver of the user's own, of which only the multiplication is JAX's."""
    return lax.custom_linear_solve(
        lambda x: jnp.tril(a) @ x,
        b,
        lambda matvec, b: b / jnp.diagonal(a),
        lambda vecmat, b: b / jnp.diagonal(a),
    )


LOOKALIKES = [
    Program("many-columns", lambda a, b: linalg.inv(a) @ b, regular((S, 4 * S)), INVERSE, "takes as long"),
    Program(
        "inverse-needed",
        lambda a, b: (linalg.inv(a) @ b, linalg.inv(a)),
        regular((S,)),
        INVERSE,
        "needed anyway",
    ),
    Program("solve", lambda a, b, c: linalg.solve(a, b) @ c, regular((S, S), (S,)), INVERSE, "no inverse"),
    Program("full", lambda a, b: linalg.solve(a, b), regular((S,)), TRIANGULAR, "not triangular"),
    Program("own-solver", conjugate_gradients, regular((S,)), TRIANGULAR, "not by LU"),
    Program("determinant", lambda a: linalg.slogdet(a)[1], regular(), DETERMINANT, "not triangular"),
    Program("small", lambda a: linalg.det(jnp.tril(a[:2, :2])), regular(), DETERMINANT, "has a formula"),
]


def test_what_only_looks_alike_stays() -> None:
    check_lookalikes(LOOKALIKES, PASSES)


def test_a_function_of_the_same_shape_is_no_determinant() -> None:
    @jax.custom_jvp
    def two(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(a), jnp.max(a)

    two.defjvp(lambda primals, tangents: (two(*primals), two(*tangents)))
    assert DETERMINANT not in fired(lambda a: two(lower(a)), *regular()(), passes=PASSES)


def test_a_solver_that_does_not_solve_stays() -> None:
    assert TRIANGULAR not in fired(small_solve, *regular((S,))(), passes=PASSES)


def gram(x: jax.Array, b: jax.Array) -> Any:
    return linalg.solve(x.T @ x + 0.1 * jnp.eye(x.shape[1]), b)


def test_positive_definite_goes_by_cholesky_on_a_gpu() -> None:
    program = Program("gram", gram, lambda: (normal(128, 64), normal(64, 2)), POSITIVE)
    assert POSITIVE in rules(program, PASSES, target="gpu")
    assert POSITIVE not in rules(program, PASSES, target="cpu")
    args = program.args()
    graph = optimised(gram, *args, passes=PASSES, target="gpu")
    assert "cholesky" in graph.to_text()
    flat = to_callable(graph)
    np.testing.assert_allclose(flat(*args)[0], gram(*args), rtol=2e-3, atol=2e-4)
    loss = jax.jit(jax.grad(lambda *args: jnp.sum(jnp.sin(flat(*args)[0])), (0, 1)))(*args)
    expected = jax.jit(jax.grad(lambda *args: jnp.sum(jnp.sin(gram(*args))), (0, 1)))(*args)
    for got, want in zip(loss, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-2, atol=2e-3)


def test_a_nearly_singular_matrix_still_goes_by_lu() -> None:
    args = (1e3 * normal(128, 32) @ normal(32, 64), normal(64))
    factor = linalg.cholesky(args[0].T @ args[0] + 0.1 * jnp.eye(64))
    assert np.isnan(np.asarray(factor)).any()
    got = to_callable(optimised(gram, *args, passes=PASSES, target="gpu"))(*args)[0]
    assert np.isfinite(np.asarray(gram(*args))).all()
    assert np.isfinite(np.asarray(got)).all()


@pytest.mark.parametrize(
    "fun",
    [
        lambda x, b: linalg.solve(x.T @ x - 0.1 * jnp.eye(64), b),
        lambda x, b: linalg.solve(x.T @ x + b[0] * jnp.eye(64), b),
        lambda x, b: linalg.solve(x.T @ x, b),
        lambda x, b: linalg.solve(x.T @ (2 * x) + jnp.eye(64), b),
    ],
)
def test_what_may_not_be_positive_definite_stays(fun: Callable[..., Any]) -> None:
    program = Program("gram", fun, lambda: (normal(128, 64), normal(64)), POSITIVE)
    assert POSITIVE not in rules(program, PASSES, target="gpu")


def test_two_solves_share_one_factorisation() -> None:
    a, b, c = regular((S,), (S, 2))()
    lines = body(lambda a, b, c: (linalg.solve(a, b), linalg.solve(a, c)), a, b, c, passes=PASSES)
    assert sum(" = lu " in line for line in lines) == 1


def test_a_singular_determinant_and_its_gradient() -> None:
    def det(v: jax.Array) -> Any:
        return linalg.det(jnp.diag(v))

    v = jnp.array([2.0, 0.0, 3.0, 5.0])
    assert DETERMINANT in fired(det, v, passes=PASSES)
    flat = to_callable(optimised(det, v, passes=PASSES))
    assert flat(v)[0] == 0
    np.testing.assert_allclose(jax.grad(lambda v: flat(v)[0])(v), [0.0, 30.0, 0.0, 0.0], rtol=1e-5)
    large = jnp.array([1e30, 1e30, 1e-30, 1e-30])
    np.testing.assert_allclose(flat(large)[0], 1.0, rtol=1e-4)


def test_a_singular_triangular_solve_is_not_finite_either() -> None:
    a = jnp.tril(regular()()[0]).at[3, 3].set(0.0)
    same(lambda a, b: jnp.isfinite(linalg.solve(lower(a), b)).all(), a, normal(S), passes=PASSES, grad=False)


WOODBURY = [
    lambda d, u, v, b: linalg.solve(jnp.diag(d) + u @ v.T, b),
    lambda d, u, v, b: linalg.solve((jnp.diag(d) - u @ v.T).T, b),
    lambda d, u, v, b: linalg.solve(d[0] * jnp.eye(200) + v @ v.T, b[:, 0]),
]


@pytest.mark.parametrize("fun", WOODBURY)
def test_woodbury_only_where_an_error_is_accepted(fun: Callable[..., Any]) -> None:
    args = (jnp.abs(normal(200)) + 1.0, normal(200, 3) / 200, normal(200, 3, seed=1) / 200, normal(200, 2))
    program = Program("woodbury", fun, lambda: args, "solve-by-woodbury")
    assert program.rule not in rules(program, PASSES)
    assert program.rule in rules(program, PASSES, "approximate")
    graph = optimised(fun, *args, passes=PASSES, level="approximate")
    np.testing.assert_allclose(to_callable(graph)(*args)[0], fun(*args), rtol=1e-3, atol=1e-4)
    assert not any(" = lu " in line and "f32[200,200]" in line for line in graph.to_text().split("\n"))


def test_woodbury_needs_low_rank() -> None:
    args = (jnp.abs(normal(S)) + 1.0, normal(S, S), normal(S, S, seed=1), normal(S, 2))
    program = Program("full-rank", WOODBURY[0], lambda: args, "solve-by-woodbury")
    assert program.rule not in rules(program, PASSES, "approximate")
