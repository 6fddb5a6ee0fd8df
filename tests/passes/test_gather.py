"""Gather: products with one-hot arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import one_hot

from lepton_jax.ir.export import to_callable
from tests.passes._check import fired, optimised, same
from tests.passes._products import (
    Program,
    body,
    check_lookalikes,
    check_programs,
    normal,
    pipeline,
    rules,
    whole,
)

PASSES = pipeline("gather")
TAKE, ADD = "product-with-one-hot", "product-with-one-hot-transposed"
V = 160


def index(*shape: int) -> jax.Array:
    """Classes, some of which do not exist."""
    return whole(*shape, low=-2, high=V + 2)


def args(*shapes: tuple[int, ...], n: tuple[int, ...] = (20,)) -> Callable[[], tuple[Any, ...]]:
    return lambda: (index(*n), *(normal(*shape, seed=i) for i, shape in enumerate(shapes)))


def gradient(i: jax.Array, t: jax.Array) -> Any:
    return jax.grad(lambda t: jnp.sum(jnp.sin(one_hot(i, V) @ t)))(t)


PROGRAMS = [
    Program("rows", lambda i, t: one_hot(i, V) @ t, args((V, 24)), TAKE),
    Program("columns", lambda i, t: t @ one_hot(i, V).T, args((24, V)), TAKE),
    Program("vector", lambda i, t: one_hot(i, V) @ t, args((V,)), TAKE),
    Program("one-index", lambda i, t: one_hot(i[0], V) @ t, args((V, 24)), TAKE),
    Program(
        "two-dimensions",
        lambda i, t: jnp.einsum("bsv,vd->bsd", one_hot(i, V), t),
        args((V, 8), n=(3, 7)),
        TAKE,
    ),
    Program(
        "batched", lambda i, t: jnp.einsum("bsv,bvd->bsd", one_hot(i, V), t), args((3, V, 8), n=(3, 7)), TAKE
    ),
    Program(
        "batched-right",
        lambda i, t: jnp.einsum("bdv,bsv->bds", t, one_hot(i, V)),
        args((3, 8, V), n=(3, 7)),
        TAKE,
    ),
    Program("axis", lambda i, t: one_hot(i, V, axis=0).T @ t, args((V, 8)), TAKE),
    Program("pick", lambda i, t: jnp.einsum("nv,nv->n", one_hot(i, V), t), args((20, V)), TAKE),
    Program("pick-and-sum", lambda i, t: jnp.einsum("nv,nv->", one_hot(i, V), t), args((20, V)), TAKE),
    Program("comparison", lambda i, t: (i[:, None] == jnp.arange(V)).astype(t.dtype) @ t, args((V, 8)), TAKE),
    Program("where", lambda i, t: jnp.where(i[:, None] == jnp.arange(V), 1.0, 0.0) @ t, args((V, 8)), TAKE),
    Program("gradient", gradient, args((V, 24)), ADD),
    Program("gradient-takes-too", gradient, args((V, 24)), TAKE),
    Program("transposed", lambda i, y: one_hot(i, V).T @ y, args((20, 24)), ADD),
    Program("transposed-right", lambda i, y: y.T @ one_hot(i, V), args((20, 24)), ADD),
    Program("transposed-vector", lambda i, y: y @ one_hot(i, V), args((20,)), ADD),
    Program(
        "transposed-two",
        lambda i, y: jnp.einsum("bsv,bsd->vd", one_hot(i, V), y),
        args((3, 7, 8), n=(3, 7)),
        ADD,
    ),
    Program(
        "transposed-batched",
        lambda i, y: jnp.einsum("bsv,bsd->bvd", one_hot(i, V), y),
        args((3, 70, 64), n=(3, 70)),
        ADD,
    ),
]


def test_products_fire_and_keep_the_meaning() -> None:
    check_programs(PROGRAMS, PASSES)


def test_not_on_a_tpu() -> None:
    for program in PROGRAMS[:1] + PROGRAMS[-4:-3]:
        assert program.rule in rules(program, PASSES, target="gpu")
        assert program.rule not in rules(program, PASSES, target="tpu")


LOOKALIKES = [
    Program(
        "two-hot",
        lambda i, t: (i[:, None] <= jnp.arange(V)).astype(t.dtype) @ t,
        args((V, 8)),
        TAKE,
        "a range",
    ),
    Program(
        "scaled-positions",
        lambda i, t: (i[:, None] == 2 * jnp.arange(V)).astype(t.dtype) @ t,
        args((V, 8)),
        TAKE,
        "positions count by two",
    ),
    Program(
        "floating-index",
        lambda i, t: (i[:, None].astype(t.dtype) == jnp.arange(V)).astype(t.dtype) @ t,
        args((V, 8)),
        TAKE,
        "the index is not whole",
    ),
    Program(
        "many-hot",
        lambda i, t: jnp.sum(one_hot(i, V), 0) @ t,
        args((V, 8)),
        TAKE,
        "rows are counts",
    ),
    Program("smoothed", lambda i, t: (one_hot(i, V) * 0.9 + 0.1) @ t, args((V, 8)), TAKE, "has no zeros"),
    Program("other-axis", lambda i, t: t @ one_hot(i, V), args((9, 20)), TAKE, "the index is summed over"),
]


def test_what_only_looks_alike_stays() -> None:
    check_lookalikes(LOOKALIKES, PASSES)


def test_the_rewritten_graph() -> None:
    lines = body(lambda i, t: one_hot(i, V) @ t, *args((V, 24))(), passes=PASSES)
    assert len(lines) == 3
    assert lines[1].startswith("%3: f32[20,24] = gather[")
    assert "fill_value=0" in lines[1] and "mode=FILL_OR_DROP" in lines[1] and lines[1].endswith("%1 %2")


def test_the_rewritten_gradient() -> None:
    text = "\n".join(body(gradient, *args((V, 24))(), passes=PASSES))
    assert "scatter-add" in text and "dot_general" not in text and "iota" not in text


def rewritten(fun: Callable[..., Any], *args: Any) -> np.ndarray[Any, Any]:
    return np.asarray(to_callable(optimised(fun, *args, passes=PASSES))(*args)[0])


def test_rows_that_do_not_exist_are_zero_and_others_come_as_they_are() -> None:
    t = normal(V, 8).at[5, 1].set(jnp.nan).at[6, 2].set(-jnp.inf)
    got = rewritten(lambda i, t: one_hot(i, V) @ t, jnp.array([-1, V, 5, 6, -(2**31), 2**31 - 1, 7]), t)
    assert (got[[0, 1, 4, 5]] == 0).all()
    assert np.isnan(got[2, 1]) and np.isneginf(got[3, 2])
    np.testing.assert_array_equal(got[6], np.asarray(t)[7])


def test_rows_that_do_not_exist_are_not_added() -> None:
    i, y = jnp.array([-1, V, 3, 3]), jnp.array([jnp.nan, jnp.inf, 1.0, 2.0])
    got = rewritten(lambda i, y: y @ one_hot(i, V), i, y)
    assert got[3] == 3.0 and (np.delete(got, 3) == 0).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32", "int8"])
def test_other_dtypes(dtype: str) -> None:
    i, t, y = index(200), (3 * normal(V, 24)).astype(dtype), (3 * normal(200, 24)).astype(dtype)
    assert TAKE in fired(lambda i, t: one_hot(i, V, dtype=t.dtype) @ t, i, t, passes=PASSES)
    same(lambda i, t: one_hot(i, V, dtype=t.dtype) @ t, i, t, passes=PASSES, grad=False)
    assert ADD in fired(lambda i, y: one_hot(i, V, dtype=y.dtype).T @ y, i, y, passes=PASSES)
    same(lambda i, y: one_hot(i, V, dtype=y.dtype).T @ y, i, y, passes=PASSES, grad=False)


def test_narrow_numbers_are_added_up_in_float32() -> None:
    i, y = jnp.zeros(2000, jnp.int32), jnp.ones((2000, 16), jnp.bfloat16)

    def fun(i: jax.Array, y: jax.Array) -> jax.Array:
        return one_hot(i, 64, dtype=jnp.bfloat16).T @ y

    assert ADD in fired(fun, i, y, passes=PASSES)
    np.testing.assert_array_equal(rewritten(fun, i, y)[0].astype(np.float32), 2000.0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32"])
def test_other_indices(dtype: str) -> None:
    i = jnp.asarray(np.array([0, 3, 7, 120, 64]), dtype)
    same(lambda i, t: one_hot(i, 100) @ t, i, normal(100, 24), passes=PASSES)


def test_nothing_to_take() -> None:
    same(lambda i, t: one_hot(i, V) @ t, index(0), normal(V, 8), passes=PASSES)
    same(lambda i, t: one_hot(i, 0) @ t, index(4), normal(0, 8), passes=PASSES)
    same(lambda i, y: one_hot(i, V).T @ y, index(0), normal(0, 8), passes=PASSES)
