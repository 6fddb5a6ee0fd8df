"""Structure: batches of matrices of known form, inverses of which there are several, determinants."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.ir.export import to_callable
from lepton_jax.rewrite import profit
from tests.passes._check import all_kept, check, run
from tests.passes._movement import array

PASSES = "default"
each = jax.vmap
inv, slogdet = jnp.linalg.inv, jnp.linalg.slogdet

D, X = array((3, 6)), array((3, 6), seed=1)
A, U, V = array((3, 6, 6)), array((3, 6, 2), seed=1), array((3, 6, 2), seed=2)
SMALL, OTHER = array((3, 2, 2)), array((3, 3, 3), seed=1)
GOOD = A + 6 * jnp.eye(6)


def test_batches_of_matrices_of_known_form() -> None:
    programs: dict[str, Any] = {
        "diag @ A": (lambda d, a: each(lambda d, a: jnp.diag(d) @ a)(d, a), (D, A)),
        "A @ diag": (lambda d, a: each(lambda d, a: a @ jnp.diag(d))(d, a), (D, A)),
        "diag @ the same": (lambda d, a: each(lambda d: jnp.diag(d) @ a)(d), (D, A[0])),
        "the same @ diag": (lambda d, a: each(lambda d: a @ jnp.diag(d))(d), (D, A[0])),
        "low rank": (
            lambda d, u, v, x: each(lambda d, u, v, x: (jnp.diag(d) - u @ v.T) @ x)(d, u, v, x),
            (D, U, V, X),
        ),
        "outer": (lambda d, x: each(lambda d, x: x @ (2 * jnp.diag(d) - jnp.outer(x, d).T))(d, x), (D, X)),
        "multiple of the identity": (
            lambda s, u, x: each(lambda s, u, x: (s * jnp.eye(6) + u @ u.T) @ x)(s, u, x),
            (D[:, 0], U, X),
        ),
        "kron": (lambda a, b, x: each(lambda a, b, x: jnp.kron(a, b) @ x)(a, b, x), (SMALL, OTHER, X)),
        "kron with the same": (
            lambda a, b, x: each(lambda a, x: jnp.kron(a, b) @ x)(a, x),
            (SMALL, OTHER[0], X),
        ),
        "twice": (
            lambda d, a: each(each(lambda d, a: jnp.diag(d) @ a))(d, a),
            (array((2, 3, 6)), array((2, 3, 6, 6))),
        ),
    }
    with profit.disregarded():
        for name, (_, report) in all_kept(programs, passes=PASSES, vmap=False, export=False).items():
            assert report.rules["product-with-batched-structure"] == 1, name


def test_batches_that_have_no_form() -> None:
    programs: dict[str, Any] = {
        "triangle": (lambda d, a: each(lambda d, a: jnp.tril(a) @ d)(d, a), (D, A)),
        "off the diagonal": (lambda d, a: each(lambda d, a: jnp.diag(d, 1)[:6, :6] @ a)(d, a), (D, A)),
        "residual": (lambda a, u, v, d: each(lambda a, u, v, d: (a - u @ v.T) @ d)(a, u, v, d), (A, U, V, D)),
        "dense": (lambda d, a: each(lambda d, a: (a + a.T) @ d)(d, a), (D, A)),
    }
    with profit.disregarded():
        reports = all_kept(programs, passes=PASSES, grad=False, vmap=False, export=False)
    assert not any("product-with-batched-structure" in report.rules for _, report in reports.values())


def test_zeros_of_batched_structure_are_zeros() -> None:
    with profit.disregarded():
        graph, _ = run(lambda d, a: each(lambda d, a: jnp.diag(d) @ a)(d, a), D, A, passes=PASSES)
    [found] = to_callable(graph)(D, A.at[0, 1].set(jnp.inf))
    assert bool(jnp.isfinite(found[0, [0, 2]]).all()) and not bool(jnp.isfinite(found[0, 1]).any())


def test_inverses_that_are_multiplied_with() -> None:
    programs: dict[str, Any] = {
        "each": (lambda a, x: each(lambda a, x: inv(a) @ x)(a, x), (GOOD, X)),
        "from the left": (lambda a, x: each(lambda a, x: x @ inv(a))(a, x), (GOOD, X)),
        "columns": (lambda a, u: inv(a) @ u, (GOOD, U)),
        "rows": (lambda a, u: u @ inv(a), (GOOD, U.swapaxes(1, 2))),
        "transposed": (lambda a, u: each(lambda a, u: inv(a).T @ u)(a, u), (GOOD, U)),
    }
    with profit.disregarded():
        for name, (_, report) in all_kept(programs, passes=PASSES, vmap=False, export=False).items():
            assert report.rules["product-with-inverse"] == 1, name


def test_products_with_one_inverse_share_its_factorisation() -> None:
    programs: dict[str, Any] = {
        "two": (lambda a, x: (inv(a) @ x[0], x[1] @ inv(a)), (GOOD[0], X)),
    }
    alike: dict[str, Any] = {
        "the inverse too": (lambda a, x: (inv(a) @ x[0], x[1] @ inv(a), inv(a) * 2), (GOOD[0], X)),
        "many columns": (lambda a, x: (inv(a) @ a, x[1] @ inv(a)), (GOOD[0], X)),
    }
    [(graph, report)] = all_kept(programs, passes=PASSES, vmap=False, export=False).values()
    assert report.rules["products-with-inverse"] >= 1
    assert sum(node.op == "lu" for node in graph) <= 2  # of A and of its transpose
    for name, (_, report) in all_kept(alike, passes=PASSES, grad=False, vmap=False, export=False).items():
        assert "products-with-inverse" not in report.rules, name


def test_determinants_of_known_form() -> None:
    d, u = jnp.abs(D[0]) + 1, U[0]
    programs: dict[str, Any] = {
        "low rank": (lambda d, u, v: slogdet(jnp.diag(d) + u @ v.T)[1], (d, u, V[0])),
        "below the identity": (lambda u: slogdet(2.0 * jnp.eye(6) - u @ u.T), (u,)),
    }
    with profit.disregarded():
        reports = all_kept(programs, passes=PASSES, level="approximate", vmap=False, export=False)
        for name, (_, report) in reports.items():
            assert report.rules["determinant-of-low-rank"] == 1, name
        _, plain = run(programs["low rank"][0], d, u, V[0], passes=PASSES)
        assert "determinant-of-low-rank" not in plain.rules
        graph, report = run(lambda a, b: slogdet(jnp.kron(a, b)), SMALL[0], OTHER[0], passes=PASSES)
        assert report.rules["determinant-of-kronecker-product"] == 1
    expected = slogdet(jnp.kron(SMALL[0], OTHER[0]))
    check(list(expected), to_callable(graph)(SMALL[0], OTHER[0]))
