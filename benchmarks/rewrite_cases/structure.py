"""Matrices of known form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.numpy import linalg
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular

from benchmarks.rewrite_cases._case import Case, normal


def arrays(*shapes: tuple[int, ...]) -> Any:
    """Makes arguments of these shapes."""
    return lambda: tuple(normal(*shape, seed=i) for i, shape in enumerate(shapes))


def regular(n: int, *shapes: tuple[int, ...]) -> Any:
    """Makes an n by n matrix far from singular, and arrays of these shapes."""
    return lambda: (
        normal(n, n) / n + jnp.eye(n),
        *(normal(*shape, seed=i) for i, shape in enumerate(shapes)),
    )


def ridge(x: jax.Array, b: jax.Array) -> Any:
    return linalg.solve(x.T @ x + jnp.eye(x.shape[1]), b)


def ridge_by_cholesky(x: jax.Array, b: jax.Array) -> Any:
    return cho_solve(cho_factor(x.T @ x + jnp.eye(x.shape[1]), lower=True), b)


def kron_by_hand(a: jax.Array, b: jax.Array, v: jax.Array) -> jax.Array:
    grid = v.reshape(a.shape[1], b.shape[1], -1)
    return jnp.einsum("pr,rsm,qs->pqm", a, grid, b).reshape(-1, v.shape[1])


def logdet_by_hand(a: jax.Array) -> jax.Array:
    return jnp.sum(jnp.log(jnp.abs(jnp.diagonal(a))))


def low_rank_each(d: jax.Array, u: jax.Array, v: jax.Array, x: jax.Array) -> jax.Array:
    result: jax.Array = jax.vmap(lambda d, u, v, x: (jnp.diag(d) + u @ v.T) @ x)(d, u, v, x)
    return result


def low_rank_each_by_hand(d: jax.Array, u: jax.Array, v: jax.Array, x: jax.Array) -> jax.Array:
    return d * x + jnp.einsum("bir,br->bi", u, jnp.einsum("bjr,bj->br", v, x))


def regular_each() -> tuple[jax.Array, ...]:
    return normal(8, 64, 64) / 64 + jnp.eye(64), normal(8, 64, seed=1)


S = 512

CASES = [
    Case("eye @ A", lambda a: jnp.eye(S) @ a, lambda a: a + 0.0, arrays((S, S))),
    Case("diag(v) @ A", lambda v, a: jnp.diag(v) @ a, lambda v, a: v[:, None] * a, arrays((S,), (S, S))),
    Case("A @ diag(v)", lambda v, a: a @ jnp.diag(v), lambda v, a: a * v, arrays((S,), (S, S))),
    Case(
        "eye[p] @ A",
        lambda a, p: jnp.eye(S)[p] @ a,
        lambda a, p: a[p],
        lambda: (normal(S, S), jnp.argsort(normal(S)).astype(jnp.int32)),
    ),
    Case(
        "kron(A, B) @ V",
        lambda a, b, v: jnp.kron(a, b) @ v,
        kron_by_hand,
        arrays((32, 32), (32, 32), (1024, 64)),
    ),
    Case(
        "(I + U Vᵀ) @ x",
        lambda u, v, x: (jnp.eye(2048) + u @ v.T) @ x,
        lambda u, v, x: x + u @ (v.T @ x),
        arrays((2048, 8), (2048, 8), (2048,)),
    ),
    Case(
        "(diag(d) + U Vᵀ) @ X",
        lambda d, u, v, x: (jnp.diag(d) + u @ v.T) @ x,
        lambda d, u, v, x: d[:, None] * x + u @ (v.T @ x),
        arrays((S,), (S, 8), (S, 8), (S, 256)),
    ),
    Case(
        "x @ (W + A B), low rank update of weights",
        lambda w, a, b, x: x @ (w + a @ b),
        lambda w, a, b, x: x @ w + (x @ a) @ b,
        arrays((2048, 2048), (2048, 8), (8, 2048), (4, 2048)),
    ),
    Case("inv(A) @ b", lambda a, b: linalg.inv(a) @ b, linalg.solve, regular(S, (S,))),
    Case(
        "diag(v) @ A for each",
        lambda v, a: jax.vmap(lambda v, a: jnp.diag(v) @ a)(v, a),
        lambda v, a: v[:, :, None] * a,
        arrays((8, 256), (8, 256, 256)),
    ),
    Case(
        "(diag(d) + U Vᵀ) @ x for each",
        low_rank_each,
        low_rank_each_by_hand,
        arrays((8, 256), (8, 256, 8), (8, 256, 8), (8, 256)),
    ),
    Case(
        "kron(A, B) @ x for each",
        lambda a, b, x: jax.vmap(lambda a, b, x: jnp.kron(a, b) @ x)(a, b, x),
        lambda a, b, x: jax.vmap(lambda a, b, x: (a @ (x.reshape(32, 16) @ b.T)).ravel())(a, b, x),
        arrays((8, 32, 32), (8, 16, 16), (8, 512)),
    ),
    Case(
        "inv(A) @ b for each",
        lambda a, b: jax.vmap(lambda a, b: linalg.inv(a) @ b)(a, b),
        lambda a, b: linalg.solve(a, b[..., None])[..., 0],
        regular_each,
    ),
    Case(
        "inv(A) @ b and inv(A) @ c",
        lambda a, b, c: (linalg.inv(a) @ b, linalg.inv(a) @ c),
        lambda a, b, c: tuple(linalg.solve(a, jnp.stack([b, c], 1)).T),
        regular(S, (S,), (S,)),
    ),
    Case(
        "slogdet(kron(A, B))",
        lambda a, b: linalg.slogdet(jnp.kron(a, b))[1],
        lambda a, b: 8 * linalg.slogdet(a)[1] + 16 * linalg.slogdet(b)[1],
        arrays((16, 16), (8, 8)),
    ),
    Case(
        "solve(tril(A), b)",
        lambda a, b: linalg.solve(jnp.tril(a), b),
        lambda a, b: solve_triangular(a, b, lower=True),
        regular(S, (S,)),
    ),
    Case(
        "solve(diag(v), B)",
        lambda v, b: linalg.solve(jnp.diag(v), b),
        lambda v, b: b / v[:, None],
        lambda: (jnp.abs(normal(S)) + 1.0, normal(S, 512)),
    ),
    Case("slogdet(tril(A))", lambda a: linalg.slogdet(jnp.tril(a))[1], logdet_by_hand, regular(S)),
    Case(
        "solve(XᵀX + I, b): Cholesky on a GPU only",
        ridge,
        ridge,
        arrays((1024, S), (S,)),
        gpu=ridge_by_cholesky,
        gpu_args=arrays((8192, 4096), (4096,)),
    ),
    Case(
        "two solves with one matrix: shared already",
        lambda a, b, c: (linalg.solve(a, b), linalg.solve(a, c)),
        lambda a, b, c: (linalg.solve(a, b), linalg.solve(a, c)),
        regular(256, (256,), (256,)),
    ),
    Case(
        "tril(A) @ B: must stay",
        lambda a, b: jnp.tril(a) @ b,
        lambda a, b: jnp.tril(a) @ b,
        arrays((S, S), (S, S)),
    ),
]
