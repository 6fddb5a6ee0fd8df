"""Chains: the order of products, and where scalings go."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir.export import to_callable
from tests.passes._check import fired, optimised, same
from tests.passes._products import (
    Program,
    body,
    check_lookalikes,
    check_program,
    check_programs,
    normal,
    pipeline,
)

DOT = "dot_general[dimension_numbers=((({},),({},)),((),())) preferred_element_type=float32]"
PASSES = pipeline("chains")
ORDER = "order-of-products"
S = 96


def matrices(*shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    return tuple(normal(*shape, seed=i) for i, shape in enumerate(shapes))


def linear_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / 7.0
    return jnp.einsum("bhqk,bhkd->bhqd", scores, v)


HEADS = ((2, 3, 300, 8),) * 3

PROGRAMS = [
    Program("to-a-vector", lambda a, b, v: (a @ b) @ v, lambda: matrices((S, S), (S, S), (S,)), ORDER),
    Program("from-a-vector", lambda v, a, b: v @ (a @ b), lambda: matrices((S,), (S, S), (S, S)), ORDER),
    Program("transposed", lambda a, b, v: (a @ b).T @ v, lambda: matrices((S, S), (S, S), (S,)), ORDER),
    Program(
        "four",
        lambda a, b, c, d: ((a @ b) @ c) @ d,
        lambda: matrices((S, 8), (8, S), (S, S), (S, 2)),
        ORDER,
    ),
    Program(
        "both-sides-products",
        lambda a, b, c, d: (a @ b) @ (c @ d),
        lambda: matrices((S, 4), (4, S), (S, S), (S, 4)),
        ORDER,
    ),
    Program("batched", linear_attention, lambda: matrices(*HEADS), ORDER),
    Program("scaled", lambda x, s, w: (x * s) @ w, lambda: matrices((900, S), (S,), (S, 3)), ORDER),
    Program(
        "scaled-on-the-right",
        lambda w, s, x: w @ (s[:, None] * x),
        lambda: matrices((3, S), (S,), (S, 900)),
        ORDER,
    ),
    Program("number", lambda x, s, w: (x * s) @ w, lambda: matrices((900, S), (), (S, 3)), ORDER),
    Program("quotient", lambda x, s, w: (x / (s + 9.0)) @ w, lambda: matrices((900, S), (), (S, 3)), ORDER),
    Program("negated", lambda x, w: (-x) @ w, lambda: matrices((900, S), (S, 3)), ORDER),
    Program("outer", lambda u, v, x: jnp.outer(u, v) @ x, lambda: matrices((S,), (S,), (S, 9)), ORDER),
    Program(
        "scaling-inside",
        lambda a, s, b, v: ((a * s) @ b) @ v,
        lambda: matrices((S, S), (S,), (S, S), (S,)),
        ORDER,
    ),
    Program(
        "gradient",
        jax.grad(lambda a, b, v: jnp.sum(jnp.sin((a @ b) @ v)), (0, 1)),
        lambda: matrices((S, S), (S, S), (S,)),
        ORDER,
    ),
]


def test_order_fires_and_keeps_the_meaning() -> None:
    check_programs(PROGRAMS, PASSES)


LOOKALIKES = [
    Program(
        "good-order", lambda a, b, v: a @ (b @ v), lambda: matrices((S, S), (S, S), (S,)), ORDER, "is best"
    ),
    Program(
        "shared",
        lambda a, b, v: ((a @ b) @ v, jnp.sum(a @ b)),
        lambda: matrices((S, S), (S, S), (S,)),
        ORDER,
        "the product is needed anyway",
    ),
    Program(
        "nonlinear",
        lambda a, b, v: jnp.tanh(a @ b) @ v,
        lambda: matrices((S, S), (S, S), (S,)),
        ORDER,
        "tanh stands between",
    ),
    Program(
        "full-scaling",
        lambda x, s, w: (x * s) @ w,
        lambda: matrices((S, S), (S, S), (S, 3)),
        ORDER,
        "the factor has all dimensions",
    ),
    Program(
        "quotient-by-a-vector",
        lambda x, s, w: (x / (s + 9.0)) @ w,
        lambda: matrices((900, S), (S,), (S, 3)),
        ORDER,
        "quotients by vectors are not moved",
    ),
    Program(
        "small", lambda a, b, v: (a @ b) @ v, lambda: matrices((2, 2), (2, 2), (2, 2)), ORDER, "gains nothing"
    ),
    Program(
        "softmax",
        lambda q, k, v: jax.nn.softmax(q @ k.T / 7.0) @ v,
        lambda: matrices((S, 8), (S, 8), (S, 8)),
        ORDER,
        "softmax stands between",
    ),
    Program(
        "precisions",
        lambda a, b, v: jnp.matmul(jnp.matmul(a, b, precision="highest"), v),
        lambda: matrices((S, S), (S, S), (S,)),
        ORDER,
        "the precisions differ",
    ),
]


def test_what_only_looks_alike_stays() -> None:
    check_lookalikes(LOOKALIKES, PASSES)


def test_the_rewritten_graph() -> None:
    assert body(lambda a, b, v: (a @ b) @ v, *matrices((S, S), (S, S), (S,)), passes=PASSES) == [
        f"%3: f32[96] = {DOT.format(1, 0)} %1 %2",
        f"%4: f32[96] = {DOT.format(1, 0)} %0 %3",
        "return %4",
    ]


def test_the_gradient_multiplies_with_vectors_only() -> None:
    text = "\n".join(body(PROGRAMS[-1].fun, *PROGRAMS[-1].args(), passes=PASSES))
    assert text.count("f32[96,96] = dot_general[dimension_numbers=(((),()),((),()))") == 2
    assert text.count("f32[96,96] =") == 2


def gram_loop(a: jax.Array, c: jax.Array) -> Any:
    return lax.scan(lambda c, _: (jnp.tanh((a.T @ a) @ c), None), c, None, length=40)[0]


def test_what_a_loop_need_not_repeat_stays() -> None:
    args = matrices((S, S), (S,))
    assert ORDER not in fired(gram_loop, *args, passes=PASSES)
    default = "inline,dce,fixpoint{rounds=4}(inline,algebra,movement,cse,chains,invariant,dce)"
    text = optimised(gram_loop, *args, passes=default).to_text()
    assert text.index("f32[96,96] = dot_general") < text.index("scan[")


def test_what_a_loop_repeats_is_ordered() -> None:
    def loop(a: jax.Array, c: jax.Array) -> Any:
        return lax.scan(lambda c, x: (jnp.tanh((jnp.outer(x, c) @ a) @ c), None), c, jnp.ones((40, S)))[0]

    args = (normal(S, S) / S, normal(S))
    assert ORDER in fired(loop, *args, passes=PASSES)
    same(loop, *args, passes=PASSES)


@pytest.mark.parametrize("dtype", ["float16", "bool"])
def test_other_dtypes_stay(dtype: str) -> None:
    a, b, v = (m.astype(dtype) for m in matrices((S, S), (S, S), (S,)))
    assert not fired(lambda a, b, v: lax.dot(lax.dot(a, b), v), a, b, v, passes="chains")


def test_bfloat16() -> None:
    args = tuple(m.astype(jnp.bfloat16) for m in matrices((S, S), (S, S), (S,)))
    assert ORDER in fired(lambda a, b, v: (a @ b) @ v, *args, passes=PASSES)
    exact = [np.asarray(m, np.float64) for m in args]
    got = np.asarray(run_rewritten(lambda a, b, v: (a @ b) @ v, *args), np.float64)
    np.testing.assert_allclose(got, exact[0] @ exact[1] @ exact[2], atol=0.03 * S)


def test_integers_wrap_alike() -> None:
    numbers = np.random.default_rng(0)
    args = tuple(jnp.asarray(numbers.integers(-(2**31), 2**31, s), jnp.int32) for s in ((S, S), (S, S), (S,)))
    assert ORDER in fired(lambda a, b, v: (a @ b) @ v, *args, passes=PASSES)
    np.testing.assert_array_equal(
        run_rewritten(lambda a, b, v: (a @ b) @ v, *args), jax.jit(lambda a, b, v: (a @ b) @ v)(*args)
    )


def run_rewritten(fun: Any, *args: Any) -> Any:
    return to_callable(optimised(fun, *args, passes=PASSES))(*args)[0]


def test_nan_stays() -> None:
    a, b, v = matrices((S, S), (S, S), (S,))
    got = np.asarray(run_rewritten(lambda a, b, v: (a @ b) @ v, a.at[3, 4].set(jnp.nan), b, v))
    assert np.isnan(got[3]) and np.isfinite(np.delete(got, 3)).all()


def test_nothing_to_multiply() -> None:
    same(lambda a, b, v: (a @ b) @ v, *matrices((0, S), (S, S), (S,)), passes=PASSES)
    same(lambda a, b, v: (a @ b) @ v, *matrices((S, S), (S, 0), (0, 3)), passes=PASSES)


def test_long_chains_end() -> None:
    def chain(*matrices: jax.Array) -> jax.Array:
        made = matrices[0]
        for m in matrices[1:]:
            made = made @ m
        return made

    args = matrices(*((S, S),) * 20, (S,))
    assert ORDER in fired(chain, *args, passes=PASSES)
    text = optimised(chain, *(m / 10 for m in args), passes=PASSES).to_text()
    assert "f32[96,96] = dot_general" not in text


def chain_loss(a: jax.Array, b: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin((a @ b) @ v))


def test_the_gradient_with_respect_to_all_of_a_chain() -> None:
    args = matrices((S, S), (S, S), (S,))
    program = Program("all", jax.grad(chain_loss, (0, 1, 2)), lambda: args, "order-of-shared-products")
    check_program(program, PASSES)
    text = "\n".join(body(program.fun, *args, passes=PASSES))
    assert text.count("f32[96,96] =") == 2  # the two gradients, outer products


def test_shared_products_that_pay_stay() -> None:
    def fun(a: jax.Array, b: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (a @ b) @ x, (a @ b) @ y

    few = matrices((S, S), (S, S), (S,), (S,))
    assert fired(fun, *few, passes=PASSES)["order-of-shared-products"] == 1  # the other one follows by itself
    many = matrices((S, S), (S, S), (S, S), (S, S))
    assert not {ORDER, "order-of-shared-products"} & fired(fun, *many, passes=PASSES).keys()
    same(fun, *few, passes=PASSES, export=False)


def test_what_others_read_too_stays_shared() -> None:
    def fun(a: jax.Array, b: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return (a @ b) @ v, v @ (a @ b), jnp.sum(a @ b)

    args = matrices((S, S), (S, S), (S,))
    assert "order-of-shared-products" not in fired(fun, *args, passes=PASSES)


TURNED = "product-turned-round"
VECTORS = [
    Program("vector", lambda a, v: (a @ v, v @ a.T), lambda: matrices((S, S), (S,)), TURNED),
    Program(
        "batched",
        lambda a, v: (jnp.einsum("bij,bj->bi", a, v), jnp.einsum("bj,bij->bi", v, a)),
        lambda: matrices((3, 9, 8), (3, 8)),
        TURNED,
    ),
]
UNTURNED = [
    Program(
        "other-side", lambda a, v: (a @ v, v @ a), lambda: matrices((S, S), (S,)), TURNED, "A is not A.T"
    ),
    Program(
        "matrix", lambda a, b: (a @ b, b.T @ a.T), lambda: matrices((8, 9), (9, 7)), TURNED, "transposed"
    ),
    Program("alone", lambda a, v: v @ a.T, lambda: matrices((S, S), (S,)), TURNED, "the only one"),
    Program(
        "precisions",
        lambda a, v: (a @ v, jnp.matmul(v, a.T, precision="highest")),
        lambda: matrices((S, S), (S,)),
        TURNED,
        "the precisions differ",
    ),
]


def test_a_product_with_a_vector_is_computed_once() -> None:
    check_programs(VECTORS, PASSES)
    check_lookalikes(UNTURNED, PASSES)
    for program in VECTORS:
        text = "\n".join(body(program.fun, *program.args(), passes=PASSES))
        assert text.count("dot_general[") == 1, program
    text = "\n".join(body(jax.grad(chain_loss, (0, 1)), *matrices((S, S), (S, S), (S,)), passes=PASSES))
    assert text.count("f32[96] = dot_general") == 3
