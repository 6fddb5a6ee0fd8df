"""Matrices of known form."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from tests.properties._draw import SIMPLIFIED, TAME, Draw, Makers, P, Program

PASS: Final = "structure"

_ZEROS: Final = "what zeros would have made of infinities and NaN does not happen, as documented"

_ROWS: Final = 6


def _matrix(d: Draw, m: int = _ROWS, n: int = _ROWS) -> Any:
    return d.wide((m, n))


def _regular(d: Draw, n: int = _ROWS, rows: int = 0) -> jax.Array:
    """Numbers of a matrix that is far from singular, also where half of it is masked."""
    shape = (rows, n, n) if rows else (n, n)
    noise = d.rng.standard_normal(shape) / (4 * n)
    return jnp.asarray(noise + np.diag(d.rng.uniform(1, 2, n)), "float32")


def _structured(d: Draw) -> Program:
    vector, other = d.wide((_ROWS,)), _matrix(d, _ROWS, 3)
    square, thin = _matrix(d), d.wide((_ROWS, 1))
    places = jnp.asarray(d.places((4,), _ROWS))
    forms = (
        (lambda a: jnp.eye(_ROWS) @ a, other),
        (lambda a: a.T @ (2.0 * jnp.eye(_ROWS)), other),
        (lambda v, a: jnp.diag(v) @ a, vector, other),
        (lambda v, a: a @ jnp.diag(v), vector, square),
        (lambda a, i: jnp.eye(_ROWS)[i] @ a, other, places),
        (lambda a, b, v: jnp.kron(a, b) @ v, d.wide((2, 3)), d.wide((4, 2)), d.wide((6,))),
        (lambda u, w, x: (jnp.eye(_ROWS) + u @ w.T) @ x, thin, thin, other),
        (lambda v, u, x: (jnp.diag(v) - jnp.outer(u, u)) @ x, vector, vector, other),
    )
    fun, *args = d.pick(*forms)
    return P(fun, *args, prepare=SIMPLIFIED, drops=_ZEROS, overflows="sums in another order")


def _batched(d: Draw) -> Program:
    rows = d.size(2)
    forms = (
        (
            lambda v, a: jax.vmap(lambda v, a: jnp.diag(v) @ a)(v, a),
            d.wide((rows, _ROWS)),
            d.wide((rows, _ROWS, 3)),
        ),
        (lambda v, a: jax.vmap(lambda v: jnp.diag(v) @ a)(v), d.wide((rows, _ROWS)), d.wide((_ROWS, 3))),
    )
    fun, *args = d.pick(*forms)
    return P(fun, *args, prepare=SIMPLIFIED, drops=_ZEROS)


def _centred(d: Draw) -> Program:
    n = 8  # a power of two: of equal numbers nothing is left, as in the plain program
    forms = (
        lambda a: (jnp.eye(n) - jnp.ones((n, n)) / n) @ a,
        lambda a: a.T @ jnp.full((n, 3), 2.0),
    )
    return P(
        d.pick(*forms),
        d.like((n, 3), "float32"),
        prepare=SIMPLIFIED,
        drops=_ZEROS,
        overflows="sums in another order",
        along=1.0,
    )


def _zeros(d: Draw) -> Program:
    x = d.like((_ROWS, 3), d.pick("int32", "float32"))
    return P(
        lambda x: d.either(
            lambda a, b: a @ b, jnp.zeros((3, 3), "int32"), x.astype("int32").T @ x.astype("int32")
        ),
        x,
        flavours=TAME,
    )


def _solve(form: Any, of: Any = _regular) -> Any:
    def make(d: Draw) -> Program:
        fun, columns = form(d)
        return P(fun, of(d), d.wide((_ROWS, columns)), prepare=SIMPLIFIED, flavours=TAME)

    return make


def _inverse(d: Draw) -> tuple[Any, int]:
    forms = (
        lambda a, b: jnp.linalg.inv(a) @ b,
        lambda a, b: b.T @ jnp.linalg.inv(a),
        lambda a, b: jnp.linalg.inv(a).T @ b,
    )
    return d.pick(*forms), d.pick(1, 2)


def _inverses(d: Draw) -> tuple[Any, int]:
    return lambda a, b: (lambda i: (i @ b[:, 0], i @ b[:, 1]))(jnp.linalg.inv(a)), 2


def _triangular(d: Draw) -> tuple[Any, int]:
    forms = (
        lambda a, b: jnp.linalg.solve(jnp.tril(a), b),
        lambda a, b: jnp.linalg.solve(jnp.triu(a), b),
        lambda a, b: jnp.linalg.solve(jnp.tril(a).T, b),
        lambda a, b: jnp.linalg.solve(jnp.diag(a[0] * 0 + 1.5), b),
        lambda a, b: jnp.linalg.solve(jnp.diag(jnp.diagonal(a)), b),
    )
    return d.pick(*forms), d.pick(1, 3)


def _gram(d: Draw) -> Program:
    x = jnp.asarray(d.rng.standard_normal((64, 64)), "float32")
    fun = lambda x, b: jnp.linalg.solve(x.T @ x + 3.0 * jnp.eye(64), b)  # noqa: E731
    return P(fun, x, d.wide((64, 2)), prepare=SIMPLIFIED, flavours=TAME, target="gpu")


def _low_rank(d: Draw) -> tuple[Any, ...]:
    numbers = jnp.asarray(d.rng.uniform(1, 2, 16), "float32")
    return numbers, *(jnp.asarray(d.rng.standard_normal((16, 2)) / 8, "float32") for _ in range(2))


def _woodbury(d: Draw) -> Program:
    sign = d.pick(1.0, -1.0)
    fun = (
        (lambda v, u, w, b: jnp.linalg.solve(jnp.diag(v) + u @ w.T, b))
        if sign > 0
        else (lambda v, u, w, b: jnp.linalg.solve(jnp.diag(v) - u @ w.T, b))
    )
    return P(fun, *_low_rank(d), d.wide((16, 1)), prepare=SIMPLIFIED, flavours=TAME)


def _determinant(d: Draw) -> Program:
    forms = (
        lambda a: jnp.linalg.slogdet(jnp.tril(a)),
        lambda a: jnp.linalg.slogdet(jnp.triu(a)),
        lambda a: jnp.linalg.det(jnp.tril(a)),
        lambda a: jnp.linalg.slogdet(jnp.diag(jnp.diagonal(a))),
    )
    return P(d.pick(*forms), _regular(d), prepare=SIMPLIFIED, flavours=TAME)


def _kronecker(d: Draw) -> Program:
    return P(
        lambda a, b: jnp.linalg.slogdet(jnp.kron(a, b)),
        _regular(d, 3),
        _regular(d, 2),
        prepare=SIMPLIFIED,
        flavours=TAME,
    )


def _lemma(d: Draw) -> Program:
    return P(
        lambda v, u, w: jnp.linalg.slogdet(jnp.diag(v) + u @ w.T),
        *_low_rank(d),
        prepare=SIMPLIFIED,
        flavours=TAME,
    )


MAKERS: Final[Makers] = {
    "product-with-structure": (_structured, _centred),
    "product-with-batched-structure": (_batched,),
    "product-with-zeros": (_zeros,),
    "product-with-inverse": (_solve(_inverse),),
    "products-with-inverse": (_solve(_inverses),),
    "solve-with-triangular": (_solve(_triangular),),
    "solve-with-positive-definite": (_gram,),
    "solve-by-woodbury": (_woodbury,),
    "determinant-of-triangular": (_determinant,),
    "determinant-of-kronecker-product": (_kronecker,),
    "determinant-of-low-rank": (_lemma,),
}


def _stays(fun: Any, *args: Any) -> Any:
    return lambda d: P(fun, *(make(d) for make in args), prepare=SIMPLIFIED)


ALIKE: Final[Makers] = {
    "product-with-structure": (
        _stays(lambda m, a: jnp.tril(m) @ a, _matrix, _matrix),
        _stays(lambda a: jnp.eye(_ROWS, k=1) @ a, _matrix),
    ),
    "product-with-batched-structure": (
        _stays(jax.vmap(lambda v, a: jnp.exp(jnp.diag(v)) @ a), _matrix, lambda d: d.wide((_ROWS, _ROWS, 3))),
    ),
    "product-with-zeros": (_stays(lambda a: jnp.zeros((_ROWS, _ROWS)) @ a, _matrix),),
    "product-with-inverse": (
        _stays(lambda a, b: (lambda i: (i @ b, i))(jnp.linalg.inv(a)), _regular, _matrix),
    ),
    "products-with-inverse": (
        _stays(lambda a, b: (lambda i: (i @ b, i))(jnp.linalg.inv(a)), _regular, _matrix),
    ),
    "solve-with-triangular": (
        _stays(lambda a, b: jnp.linalg.solve(a, b), _regular, _matrix),
        _stays(lambda a, b: jnp.linalg.solve(jnp.tril(a, 1), b), _regular, _matrix),
    ),
    "solve-with-positive-definite": (
        lambda d: P(
            lambda x, b: jnp.linalg.solve(x.T @ x - 0.1 * jnp.eye(64), b),
            d.wide((64, 64)),
            d.wide((64,)),
            prepare=SIMPLIFIED,
            target="gpu",
        ),
    ),
    "solve-by-woodbury": (_stays(lambda a, b: jnp.linalg.solve(a + a @ b, b), _matrix, _matrix),),
    "determinant-of-triangular": (
        _stays(lambda a: jnp.linalg.slogdet(a), _regular),
        _stays(lambda a: jnp.linalg.slogdet(jnp.tril(a, 1)), _regular),
    ),
    "determinant-of-kronecker-product": (
        _stays(lambda a: jnp.linalg.slogdet(jnp.kron(a[:2], a[:3, :1])), _matrix),
    ),
    "determinant-of-low-rank": (_stays(lambda a, b: jnp.linalg.slogdet(a + a @ b), _matrix, _matrix),),
}
