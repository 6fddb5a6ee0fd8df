"""Order statistics: choosing instead of sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir.export import to_callable
from tests.passes._check import all_kept, fired, optimised, rewrite_jaxpr, same
from tests.passes._golden import assert_every_gate, assert_text
from tests.passes._movement import array

PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,order,dce)"
X = array((6, 96))

Program = Callable[..., Any]

SORTS: list[tuple[str, Program]] = [
    ("the first", lambda x: jnp.sort(x)[:, 0]),
    ("the last", lambda x: jnp.sort(x)[:, -1]),
    ("the first four", lambda x: jnp.sort(x)[:, :4]),
    ("the last four", lambda x: jnp.sort(x)[:, -4:]),
    ("the second", lambda x: jnp.sort(x)[:, 1]),
    ("the first and third", lambda x: jnp.sort(x)[:, :3:2]),
    ("the largest four", lambda x: -jnp.sort(-x)[:, :4]),
    ("in reverse", lambda x: jnp.sort(x)[:, ::-1][:, :4]),
    ("descending", lambda x: jnp.sort(x, descending=True)[:, :4]),
    ("two reads", lambda x: jnp.sort(x)[:, 3] - jnp.sort(x)[:, 0]),
    ("along another axis", lambda x: jnp.sort(x.T, 0)[:4]),
    ("of some rows", lambda x: jnp.sort(x)[2:5, :4]),
    ("both ends", lambda x: (lambda y: y[:, 2] - y[:, -3])(jnp.sort(x))),
    ("first number", lambda x: jnp.argsort(x)[:, 0]),
    ("last number", lambda x: jnp.argsort(x)[:, -1]),
    ("first numbers", lambda x: jnp.argsort(x)[:, :4]),
    ("last numbers", lambda x: jnp.argsort(x)[:, -4:]),
    ("numbers, descending", lambda x: jnp.argsort(x, descending=True)[:, :4]),
    (
        "values and numbers",
        lambda x: [v[:, :4] for v in lax.sort_key_val(x, lax.broadcasted_iota(int, x.shape, 1))],
    ),
    ("another array", lambda x: lax.sort_key_val(x, jnp.cos(x))[1][:, :4]),
    ("a quantile", lambda x: jnp.quantile(x, 0.97, axis=1)),
    ("a percentile", lambda x: jnp.percentile(x, 3.0, axis=1)),
]


def test_nothing_is_sorted() -> None:
    for graph, _ in all_kept({name: (fun, (X,)) for name, fun in SORTS}, passes=PASSES).values():
        assert "sort" not in [node.op for node in graph.walk()]


def rewritten(fun: Program, *args: Any) -> Program:
    """The function after the passes."""
    closed = jax.make_jaxpr(fun)(*args)
    flat = to_callable(rewrite_jaxpr(closed, "f", PASSES)[0])
    return lambda *args: flat(*args)[0]


def ties(dtype: Any = np.float32) -> jax.Array:
    """Rows with many equal entries, zeros of both signs, infinities and NaN."""
    numbers = np.random.default_rng(3).integers(-3, 3, size=(40, 96)).astype(np.float32)
    numbers[1:10, ::3] = -0.0
    numbers[5:20, 7] = np.nan
    numbers[7, 9:] = np.nan
    numbers[15:30, 11] = np.inf
    numbers[16:32, 13] = -np.inf
    numbers[33, :] = np.nan
    numbers[34, :] = -np.inf
    numbers[35, ::2] = -np.float32(np.nan)
    return jnp.asarray(numbers).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_entries_and_nan_are_where_a_stable_sort_puts_them(dtype: str) -> None:
    x = ties(dtype)
    flat = {name: to_callable(optimised(fun, x, passes=PASSES)) for name, fun in SORTS[:20]}
    pairs = jax.jit(lambda x: {name: (jax.tree.leaves(fun(x)), flat[name](x)) for name, fun in SORTS[:20]})(x)
    for name, (expected, result) in pairs.items():
        for a, b in zip(expected, result, strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64), err_msg=name)


@pytest.mark.parametrize(
    "fun", [s[1] for s in SORTS[:2] + SORTS[13:15]], ids=["first", "last", "argmin", "argmax"]
)
def test_whole_numbers_and_one_entry(fun: Program) -> None:
    x = jnp.asarray(np.random.default_rng(0).integers(-5, 5, size=(7, 40)), jnp.int32)
    graph = same(fun, x, passes=PASSES)
    assert "sort" not in [node.op for node in graph.walk()]


def test_rows_that_are_all_nan_or_infinite() -> None:
    x = jnp.full((3, 16), jnp.nan).at[1].set(jnp.inf).at[2, 1:].set(jnp.inf)
    first = rewritten(lambda x: jnp.sort(x)[:, 0], x)(x)
    assert jnp.isnan(first[0]) and jnp.isposinf(first[1]) and not jnp.isfinite(first[2])


def test_nan_outlives_the_maximum_of_the_backend() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4096)), jnp.float32)
    x = x.at[1, 5].set(jnp.nan).at[2, 9].set(-jnp.float32(jnp.nan)).at[3].set(jnp.nan).at[4, :2].set(jnp.inf)
    programs: dict[str, Program] = {
        "last of a sort": lambda x: jnp.sort(x)[:, -1],
        "largest": lambda x: lax.cummax(x, 1)[:, -1],
        "smallest": lambda x: lax.cummin(x, 1)[:, -1],
    }
    assert not any({"sort", "cummax", "cummin"} & ops(fun, x) for fun in programs.values())
    made = {name: rewritten(fun, x) for name, fun in programs.items()}
    pairs = jax.jit(lambda x: {name: (fun(x), made[name](x)) for name, fun in programs.items()})(x)
    for name, (expected, result) in pairs.items():
        np.testing.assert_array_equal(expected, result, err_msg=name)
        assert np.isnan(result[1:4]).all(), name


def ops(fun: Program, x: jax.Array) -> set[str]:
    return {node.op for node in optimised(fun, x, passes=PASSES).walk()}


def test_the_graph_of_the_smallest() -> None:
    assert_text(
        optimised(lambda x: lax.sort(x)[-1:], X[0], passes=PASSES),
        """
        graph <lambda>(%0: f32[96]) {
          %1: f32[] = reduce_max[axes=(0,)] %0
          %2: f32[96] = abs %0
          %3: f32[] = reduce_sum[axes=(0,)] %2
          %4: bool[] = ne %3 %3
          %5: f32[] = select_n %4 %1 nan
          %6: f32[1] = broadcast_in_dim[broadcast_dimensions=() shape=(1,)] %5
          return %6
        }
        """,
    )


LOOKALIKES: list[tuple[str, Program, Any]] = [
    ("too many", lambda x: jnp.sort(x)[:, :40], X),
    ("from the middle", lambda x: jnp.sort(x)[:, 40:44], X),
    ("a median", lambda x: jnp.median(x, 1), X),
    ("all of it too", lambda x: (lambda y: (y[:, :4], y.cumsum(1)))(jnp.sort(x)), X),
    ("the first and the middle", lambda x: (lambda y: (y[:, 0], y[:, 50]))(jnp.sort(x)), X),
    ("by number", lambda x: jnp.sort(x)[:, jnp.argmax(x[0])], X),
    ("whole numbers", lambda x: jnp.sort(x)[:, :4], X.astype(jnp.int32)),
    ("two keys", lambda x: lax.sort((x, jnp.cos(x)), num_keys=2)[0][:, :4], X),
    ("along the other axis", lambda x: jnp.sort(x)[:1], X),
]


def test_what_is_sorted_stays_sorted() -> None:
    found = all_kept({name: (fun, (x,)) for name, fun, x in LOOKALIKES}, passes=PASSES)
    for name, (graph, _) in found.items():
        assert "sort" in [node.op for node in graph.walk()], name


def test_a_sort_for_each_level() -> None:
    assert "part-of-sort" not in fired(SORTS[2][1], X, passes=PASSES, level="exact")
    assert "part-of-sort" not in fired(SORTS[2][1], X, passes=PASSES.replace("order", "order{level=exact}"))


# Running sums and their like

RUNNING: list[tuple[str, Program, str]] = [
    ("the last sum", lambda x: jnp.cumsum(x, 1)[:, -1], "reduce_sum"),
    ("another sum", lambda x: jnp.cumsum(x, 1)[:, 40], "reduce_sum"),
    ("a sum from behind", lambda x: lax.cumsum(x, 1, reverse=True)[:, 0], "reduce_sum"),
    ("a sum of some rows", lambda x: jnp.cumsum(x, 1)[::2, -1], "reduce_sum"),
    ("the last product", lambda x: jnp.cumprod(x / 4, 1)[:, -1], "reduce_prod"),
    ("the largest so far", lambda x: lax.cummax(x, 1)[:, -1], "reduce_max"),
    ("the smallest so far", lambda x: lax.cummin(x, 1)[:, 50], "reduce_min"),
]


def test_one_entry_of_a_running_sum_is_a_sum() -> None:
    found = all_kept({name: (fun, (X,)) for name, fun, _ in RUNNING}, passes=PASSES)
    for name, fun, op in RUNNING:
        ops = [node.op for node in found[name][0].walk()]
        assert op in ops, name
        assert not any(o.startswith("cum") for o in ops), name
        assert fired(fun, X, passes="order", level="exact") == {}, name


STILL_RUNNING: list[tuple[str, Program, Any]] = [
    ("two entries", lambda x: lax.cumsum(x, 1)[:, -2:], X),
    ("along the other axis", lambda x: lax.cumsum(x, 0)[:, -1], X),
    ("read elsewhere", lambda x: (lambda y: (y[:, -1], y))(lax.cumsum(x, 1)), X),
    ("short numbers", lambda x: lax.cumsum(x, 1)[:, -1], X.astype(jnp.bfloat16)),
]


@pytest.mark.parametrize(("fun", "x"), [p[1:] for p in STILL_RUNNING], ids=[p[0] for p in STILL_RUNNING])
def test_other_running_sums_stay(fun: Program, x: jax.Array) -> None:
    assert fired(fun, x, passes="order") == {}


# The largest


def softmax(x: jax.Array) -> jax.Array:
    e = jnp.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


RISING: list[tuple[str, Program, str]] = [
    ("softmax", lambda x: jnp.argmax(jax.nn.softmax(x), -1), "argmax"),
    ("softmax by hand", lambda x: jnp.argmax(softmax(x), -1), "argmax"),
    ("log_softmax", lambda x: jnp.argmax(jax.nn.log_softmax(x), -1), "argmax"),
    ("the least likely", lambda x: jnp.argmin(jax.nn.softmax(x), -1), "argmin"),
    ("temperature", lambda x: jnp.argmax(jax.nn.softmax(x / 0.7), -1), "argmax"),
    ("a negation", lambda x: jnp.argmax(-jnp.sinh(x), -1), "argmin"),
    ("what it lacks of one", lambda x: jnp.argmin(1 - jnp.exp(x), -1), "argmax"),
    ("the root of a square", lambda x: jnp.argmax(jnp.sqrt(x * x), -1), "argmax"),
]


def test_the_largest_of_what_rises() -> None:
    found = all_kept({name: (fun, (X,)) for name, fun, _ in RISING}, passes=PASSES)
    for name, _, op in RISING:
        graph, report = found[name]
        assert report.rules["choice-of-rising"] >= 1, name
        assert [node.op for node in graph.walk() if node.op in ("argmax", "argmin")] == [op], name
        assert not any(n.op in ("exp", "sinh", "div", "sqrt") for n in graph.walk()), name


NOT_RISING: list[tuple[str, Program]] = [
    ("a bias of its own", lambda x: jnp.argmax(x + x[:1], -1)),
    ("a factor of its own", lambda x: jnp.argmax(x * jnp.exp(x[:1]), -1)),
    ("what comes to a stop", lambda x: jnp.argmax(jnp.tanh(x), -1)),
    ("a square", lambda x: jnp.argmax(jnp.square(x), -1)),
    ("a logarithm of what may be negative", lambda x: jnp.argmax(jnp.log(x), -1)),
    ("a quotient by what may be negative", lambda x: jnp.argmax(x / x.sum(-1, keepdims=True), -1)),
    ("of columns", lambda x: jnp.argmax(x - x.max(-1, keepdims=True), 0)),
    ("a negative factor", lambda x: jnp.argmax(x * -2.0, -1)),
]


@pytest.mark.parametrize("fun", [n[1] for n in NOT_RISING], ids=[n[0] for n in NOT_RISING])
def test_the_largest_of_what_need_not_rise(fun: Program) -> None:
    assert "choice-of-rising" not in fired(fun, X, passes=PASSES)


def test_the_best_of_the_best() -> None:
    graph = same(lambda x: lax.top_k(lax.top_k(x, 12)[0], 3), X, passes=PASSES, grad=False)
    assert [node.op for node in graph].count("top_k") == 1
    same(lambda x: lax.top_k(lax.top_k(x, 12)[0], 12)[0], X, passes=PASSES)
    assert "top-of-top" not in fired(lambda x: lax.top_k(jnp.sin(lax.top_k(x, 12)[0]), 3), X, passes=PASSES)


def test_a_forbidden_change_is_not_made() -> None:
    assert assert_every_gate(SORTS[-2][1], X, passes=PASSES) > 2
