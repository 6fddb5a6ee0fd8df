"""Losses: logarithms of softmax, and one class of each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir.export import to_callable
from tests.passes._check import all_kept, bitwise, check, fired, optimised, same

SIMPLIFY = "inline,dce,fixpoint(fold,algebra,movement,cse,dce)"
PASSES = f"{SIMPLIFY},losses,{SIMPLIFY}"
ROWS, CLASSES = 6, 20

Fun = Callable[..., Any]


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def labels(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, CLASSES, size=shape), jnp.int32)


X, Y = normal(ROWS, CLASSES), labels(ROWS)


def log_softmax_written_out(x: jax.Array) -> jax.Array:
    shifted = jnp.exp(x - x.max(-1, keepdims=True))
    return jnp.log(shifted / shifted.sum(-1, keepdims=True))


LOG_SOFTMAX: list[Fun] = [
    lambda x: jnp.log(jax.nn.softmax(x)),
    lambda x: jnp.log(jax.nn.softmax(x, axis=0)),
    lambda x: jnp.log(jax.nn.softmax(x, axis=(0, 1))),
    log_softmax_written_out,
]


def test_log_of_softmax() -> None:
    programs = {
        f"{i} of {dtype}": (fun, (normal(ROWS, CLASSES, dtype=dtype),))
        for i, fun in enumerate(LOG_SOFTMAX)
        for dtype in ("float32", "bfloat16")
        if dtype == "float32" or i in (0, 3)
    }
    for name, (graph, report) in all_kept(programs, passes=PASSES).items():
        assert report.rules["log-of-softmax"] == 1, name
        assert " div " not in graph.to_text(), name


def test_log_of_softmax_golden() -> None:
    text = optimised(LOG_SOFTMAX[0], X, passes=PASSES).to_text().replace("[accuracy=None]", "")
    assert text.split("\n", 2)[2].rstrip() == (
        """\
  %2: f32[6,1] = broadcast_in_dim[broadcast_dimensions=(0,) shape=(6,1)] %1
  %3: f32[6,1] = stop_gradient %2
  %4: f32[6,20] = sub %0 %3
  %5: f32[6,20] = exp %4
  %6: f32[6] = reduce_sum[axes=(1,)] %5
  %7: f32[6,1] = broadcast_in_dim[broadcast_dimensions=(0,) shape=(6,1)] %6
  %8: f32[6,1] = log %7
  %9: f32[6,20] = sub %4 %8
  return %9
}"""
    )


def test_log_of_softmax_where_probabilities_underflow() -> None:
    x = X.at[0, 0].set(300.0)
    rewritten = to_callable(optimised(LOG_SOFTMAX[0], x, passes=PASSES))

    def both(fun: Fun) -> Fun:
        return lambda x: (fun(x), jax.grad(lambda x: fun(x).sum())(x))

    check(jax.jit(both(jax.nn.log_softmax))(x), jax.jit(both(lambda x: rewritten(x)[0]))(x))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_log_of_softmax_keeps_what_is_not_finite(bad: float) -> None:
    x = X.at[2, 3].set(bad)
    (result,) = to_callable(optimised(LOG_SOFTMAX[0], x, passes=PASSES))(x)
    np.testing.assert_allclose(result, LOG_SOFTMAX[0](x), rtol=1e-5, atol=1e-5)


def test_log_of_softmax_of_nothing() -> None:
    programs = {str(shape): (LOG_SOFTMAX[0], (jnp.ones(shape),)) for shape in ((0, 5), (1, 1))}
    all_kept(programs, passes=PASSES, grad=False)


LOOKALIKES: list[Fun] = [
    lambda x: jnp.log(jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)),
    lambda x: jnp.log(jax.nn.softmax(x) + 1e-8),
    lambda x: jnp.log(jnp.exp(x - x.max(-1, keepdims=True)) / jnp.exp(x).sum(-1, keepdims=True)),
    lambda x: jnp.log2(1.0 + jax.nn.softmax(x)),
]


@pytest.mark.parametrize("fun", LOOKALIKES)
def test_looks_like_log_of_softmax(fun: Fun) -> None:
    assert "log-of-softmax" not in fired(fun, X, passes=PASSES)


# One class of each row


def picked(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=-1)


def picked_from_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(x)[jnp.arange(ROWS), y]


def picked_from_columns(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(x.T, axis=0)[y, jnp.arange(ROWS)]


def picked_of_probability(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.log(jax.nn.softmax(x))[jnp.arange(ROWS), y]


def clipped(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=-1, mode="clip")


def picked_twice(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.take_along_axis(2.0 * x - x.mean(-1, keepdims=True), jnp.stack([y, y + 1], 1), axis=-1)


def picked_by_vmap(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.vmap(lambda row, label: jax.nn.log_softmax(row)[label])(x, y)


PICKS: list[Fun] = [
    picked_by_vmap,
    picked,
    picked_from_rows,
    picked_from_columns,
    picked_of_probability,
    clipped,
    picked_twice,
]


def test_pick() -> None:
    found = all_kept({fun.__name__: (fun, (X, Y)) for fun in PICKS}, passes=PASSES)
    for name, (graph, report) in found.items():
        assert report.rules["pick-of-arithmetic"] >= 1, name
        text = graph.to_text()
        assert text.count("sub") >= 1, name
        assert text[: text.index(" = gather")].count("f32[6,20] = sub") <= 1, name


def test_pick_in_three_dimensions() -> None:
    args = normal(3, ROWS, CLASSES), labels(3, ROWS)
    all_kept({fun.__name__: (jax.vmap(fun), args) for fun in PICKS}, passes=PASSES, vmap=False, export=False)


def test_pick_by_row_numbers_of_two_dimensions() -> None:
    def fun(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(x)[jnp.arange(3)[:, None], jnp.arange(ROWS)[None, :], y]

    x, y = normal(3, ROWS, CLASSES), labels(3, ROWS)
    rules = fired(fun, x, y, passes=PASSES)
    assert rules["pick-by-row-number"] == 1
    assert rules["pick-of-arithmetic"] == 2
    same(fun, x, y, passes=PASSES)


def test_gradient_by_row_number() -> None:
    step = jax.grad(lambda x, y: picked_from_rows(x, y).sum())
    assert fired(step, X, Y, passes=PASSES)["add-by-row-number"] == 1
    rewritten = jax.jit(to_callable(optimised(step, X, Y, passes=PASSES)))
    check(jax.jit(step)(X, Y), rewritten(X, Y)[0])


@pytest.mark.parametrize("fun", [picked, picked_from_rows])
@pytest.mark.parametrize("out", [False, True])
def test_sum_of_labels(fun: Fun, out: bool) -> None:
    """The gradient sums the gradients of what was picked without a pass over the classes."""
    y = Y.at[0].set(CLASSES) if out else Y
    step = jax.value_and_grad(lambda x, y: fun(x, y).sum())
    graph = optimised(step, X, y, passes=PASSES)
    assert fired(step, X, y, passes=PASSES)["sum-of-labels"] == 1
    assert graph.to_text().count(" = reduce_sum[axes=(1,)]") == 1
    for want, result in zip(jax.jit(step)(X, y), jax.jit(to_callable(graph))(X, y), strict=True):
        np.testing.assert_allclose(result, want, rtol=1e-5, atol=1e-6)


def twice_each_row(x: jax.Array, y: jax.Array) -> jax.Array:
    both = jnp.stack([y, y], 1)
    return jnp.zeros_like(x).at[jnp.arange(ROWS)[:, None], both].add(x[:, :2]).sum(1)


def onto_other_numbers(x: jax.Array, y: jax.Array) -> jax.Array:
    return x.at[jnp.arange(ROWS), y].add(1.0).sum(1)


def sum_over_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.zeros_like(x).at[jnp.arange(ROWS), y].add(x[:, 0]).sum(0)


@pytest.mark.parametrize("fun", [twice_each_row, onto_other_numbers, sum_over_rows])
def test_looks_like_a_sum_of_labels(fun: Fun) -> None:
    assert "sum-of-labels" not in fired(fun, X, Y, passes=PASSES)


def test_row_numbers_are_exact() -> None:
    def fun(x: jax.Array, y: jax.Array) -> jax.Array:
        return x[jnp.arange(ROWS), y]

    bad = X.at[0].set(jnp.nan).at[1].set(-0.0)
    assert fired(fun, bad, Y, passes=PASSES, level="exact")["pick-by-row-number"] == 1
    bitwise(fun, bad, Y, passes=PASSES)


def test_labels_out_of_bounds() -> None:
    y = Y.at[0].set(CLASSES).at[1].set(-1).at[2].set(-CLASSES - 1)
    for fun in (picked, clipped, picked_from_rows):
        (result,) = to_callable(optimised(fun, X, y, passes=PASSES))(X, y)
        np.testing.assert_allclose(result, fun(X, y), rtol=1e-6)


def test_no_gradient_out_of_bounds() -> None:
    y = Y.at[0].set(CLASSES)
    rewritten = to_callable(optimised(picked, X, y, passes=PASSES))
    slope = jax.grad(lambda x: rewritten(x, y)[0].sum())(X)
    np.testing.assert_array_equal(slope[0], 0.0)
    check(jax.grad(lambda x: picked(x, y).sum())(X), slope)


def filled_with_zero(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=-1, mode="fill", fill_value=0)


def other_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(x)[jnp.arange(ROWS)[::-1], y]


def whole_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(x)[y % ROWS]


def many_classes(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(x), jnp.tile(y[:, None], (1, 12)), axis=-1)


def of_integers(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jnp.round(x).astype(jnp.int32) - y[:, None], y[:, None], axis=-1)


@pytest.mark.parametrize("fun", [filled_with_zero, other_rows, whole_rows, many_classes, of_integers])
def test_looks_like_a_pick(fun: Fun) -> None:
    rules = fired(fun, X, Y, passes=PASSES)
    assert "pick-of-arithmetic" not in rules
    assert "pick-by-row-number" not in rules


def test_exact_leaves_arithmetic_alone() -> None:
    rules = fired(picked, X, Y, passes=PASSES, level="exact")
    assert "log-of-softmax" not in rules
    assert "log-of-softmax" not in fired(LOG_SOFTMAX[0], X, passes=PASSES, level="exact")
