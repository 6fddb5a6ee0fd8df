"""Demand: diagonals, traces and sums of products; last rows of scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests.passes._check import all_kept, fired, optimised, same
from tests.passes._golden import assert_text
from tests.passes._movement import array

PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,demand,dce)"
A, B = array((96, 64)), array((64, 80), seed=1)
S, T = array((64, 64)), array((64, 64), seed=1)
BATCHES = array((3, 64, 64)), array((3, 64, 64), seed=1)

Program = Callable[..., Any]

SUMS: list[tuple[str, Program, tuple[Any, ...], str]] = [
    ("all", lambda a, b: jnp.sum(a @ b), (A, B), "(((0,),(0,)),((),()))"),
    ("over rows", lambda a, b: jnp.sum(a @ b, 0), (A, B), "(((0,),(0,)),((),()))"),
    ("over columns", lambda a, b: jnp.sum(a @ b, 1), (A, B), "(((1,),(0,)),((),()))"),
    ("mean", lambda a, b: jnp.mean(a @ b, 0), (A, B), "(((0,),(0,)),((),()))"),
    ("over batches", lambda a, b: jnp.sum(a @ b, 0), BATCHES, "(((2,0),(1,0)),((),()))"),
    ("over tokens", lambda a, b: jnp.sum(a @ b, 1), BATCHES, "(((1,),(1,)),((0,),(0,)))"),
    ("trace", jnp.trace, (S, T), "(((1,0),(0,1)),((),()))"),
    ("trace off the diagonal", lambda c: jnp.trace(c, -2), (S, T), "(((1,0),(0,1)),((),()))"),
    ("traces", lambda c: jnp.trace(c, axis1=1, axis2=2), BATCHES, "(((2,1),(1,2)),((0,),(0,)))"),
    ("diagonal", jnp.diagonal, (S, T), "(((1,),(0,)),((0,),(1,)))"),
    ("diagonal above", lambda c: jnp.diagonal(c, 3), (S, T), "(((1,),(0,)),((0,),(1,)))"),
    ("diagonal of no square", jnp.diagonal, (A, B), "(((1,),(0,)),((0,),(1,)))"),
    ("diagonals", lambda c: jnp.diagonal(c, axis1=1, axis2=2), BATCHES, "(((2,),(1,)),((0,1),(0,2)))"),
    ("diagonals by vmap", jax.vmap(jnp.diagonal), BATCHES, "(((2,),(1,)),((0,1),(0,2)))"),
    ("einsum's diagonal", lambda c: jnp.einsum("ii->i", c), (S, T), "(((1,),(0,)),((0,),(1,)))"),
]


def product(fun: Program) -> Program:
    """A program of two matrices; functions of one array take their product."""
    if fun.__name__ == "<lambda>" and fun.__code__.co_argcount == 2:
        return fun
    return lambda a, b: fun(a @ b)


def test_the_product_is_not_computed() -> None:
    programs = {name: (product(fun), args) for name, fun, args, _ in SUMS}
    found = all_kept(programs, passes=PASSES)
    for name, _, _, numbers in SUMS:
        assert f"dimension_numbers={numbers}" in found[name][0].to_text(), name


def test_the_graph_of_a_sum() -> None:
    graph = optimised(
        lambda a, b: lax.reduce_sum(lax.dot_general(a, b, (((1,), (0,)), ((), ()))), (0, 1)),
        A,
        B,
        passes=PASSES,
    )
    expected = """
        graph <lambda>(%0: f32[96,64], %1: f32[64,80]) {
          %2: f32[64] = reduce_sum[axes=(0,)] %0
          %3: f32[64] = reduce_sum[axes=(1,)] %1
          %4: f32[] = dot_general[dimension_numbers=(((0,),(0,)),((),()))] %2 %3
          return %4
        }
    """
    assert_text(graph, expected)


SHIFTED: list[tuple[str, Program]] = [
    ("bias", lambda x, w, b: jnp.mean(x @ w + b, 1)),
    ("bias first", lambda x, w, b: jnp.sum(b + x @ w, 1)),
    ("minus a bias", lambda x, w, b: jnp.sum(x @ w - b, (0, 1))),
    ("a bias minus", lambda x, w, b: jnp.sum(b - x @ w, (1, 2))),
    ("plus a number", lambda x, w, b: jnp.sum(x @ w + 3, 0)),
    ("plus an array", lambda x, w, b: jnp.sum(x @ w + jnp.sin(x), 1)),
]

SCALED: list[tuple[str, Program]] = [
    ("numbers", lambda x, w, b: jnp.sum(2 * (x @ w) / 3, 0)),
    ("weights of rows", lambda x, w, b: jnp.sum(x[..., :1] * (x @ w), 1)),
    ("weights of columns", lambda x, w, b: jnp.sum((x @ w) * b, -1)),
    ("of both", lambda x, w, b: -jnp.sum((x @ w) * b / (x[..., :1] ** 2 + 1))),
    ("an average", lambda x, w, b: jnp.average(x @ w, axis=-1, weights=jnp.square(b))),
    ("what stays has a weight too", lambda x, w, b: jnp.sum(x[..., :1] * (x @ w) * b, 1)),
]


@pytest.mark.parametrize(
    ("rule", "programs"), [("sum-of-shifted-dot", SHIFTED), ("sum-of-scaled-dot", SCALED)]
)
def test_sums_of_products_shifted_and_scaled(rule: str, programs: list[tuple[str, Program]]) -> None:
    args = array((4, 96, 64)), array((64, 64), seed=1), array((64,), seed=2)
    found = all_kept({name: (fun, args) for name, fun in programs}, passes=PASSES)
    for name, (graph, report) in found.items():
        assert report.rules[rule] == 1, name
        dots = [node for node in graph if node.op == "dot_general"]
        assert all(node.result.aval.size < 4 * 96 * 64 for node in dots), name


LOOKALIKES: list[tuple[str, Program, tuple[Any, ...]]] = [
    ("the largest", lambda a, b: jnp.max(a @ b), (A, B)),
    ("read elsewhere", lambda a, b: (lambda c: (c.sum(), c))(a @ b), (A, B)),
    ("a weight for each entry", lambda a, b: jnp.sum(jnp.sin(a[:, :1] + b[:1]) * (a @ b), 0), (A, B)),
    ("squares", lambda a, b: jnp.sum(jnp.square(a @ b)), (A, B)),
    ("too small to pay", lambda a, b: jnp.sum(a @ b, 0), (A[:2, :2], B[:2, :2])),
    (
        "short numbers",
        lambda a, b: lax.reduce_sum(a @ b, (0, 1)),
        (A.astype("bfloat16"), B.astype("bfloat16")),
    ),
    ("below the diagonal", lambda a, b: jnp.sum(jnp.tril(a @ b)), (S, T)),
    ("a mask that is not zero outside", lambda a, b: jnp.sum(jnp.where(jnp.eye(64) > 0, a @ b, 1.0)), (S, T)),
    ("other entries", lambda a, b: (a @ b)[jnp.arange(64), jnp.arange(64)[::-1]], (S, T)),
    ("the diagonal of a sum over no product", lambda a, b: jnp.trace(a + b), (S, T)),
]


@pytest.mark.parametrize(("fun", "args"), [p[1:] for p in LOOKALIKES], ids=[p[0] for p in LOOKALIKES])
def test_nothing_changes(fun: Program, args: tuple[Any, ...]) -> None:
    assert fired(fun, *args, passes="inline,dce,fixpoint(movement,cse),demand") == fired(
        fun, *args, passes="inline,dce,fixpoint(movement,cse)"
    )


def test_infinities_reach_the_sum() -> None:
    a = A.at[3, 4].set(jnp.inf).at[7, 7].set(jnp.nan)
    same(lambda a, b: jnp.sum(a @ b, 1), a, B, passes=PASSES, grad=False)


def test_whole_numbers_wrap_alike() -> None:
    a, b = array((96, 64), "int32"), array((64, 80), "int32", seed=1)
    assert fired(lambda a, b: lax.reduce_sum(a @ b, (0, 1)), a, b, passes=PASSES) == {"sum-of-dot": 1}
    same(lambda a, b: lax.reduce_sum(a @ b, (0, 1)), a, b, passes=PASSES)


# Scans


def sequence(steps: int = 16) -> tuple[jax.Array, jax.Array]:
    return array((steps, 4, 8)) / 4, array((8, 8), seed=1) / 4


def network(xs: jax.Array, w: jax.Array, *, reverse: bool = False) -> tuple[jax.Array, Any]:
    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, Any]:
        new = jnp.tanh(x + h @ w)
        return new, {"out": jnp.sin(new @ w) + x, "state": new, "before": h}

    return lax.scan(step, jnp.zeros_like(xs[0]), xs, reverse=reverse)


ROWS: list[tuple[str, Program, int]] = [
    ("from the state", lambda xs, w: network(xs, w)[1]["out"][-1], 1),
    ("the state", lambda xs, w: network(xs, w)[1]["state"][-1], 1),
    ("the state and the carry", lambda xs, w: (network(xs, w)[0], network(xs, w)[1]["state"][-1]), 1),
    ("the state before", lambda xs, w: network(xs, w)[1]["before"][-1], 2),
    ("one token", lambda xs, w: jnp.tanh(jnp.swapaxes(network(xs, w)[1]["out"], 0, 1))[:, -1], 1),
    ("one row", lambda xs, w: network(xs, w)[1]["out"][-1:], 1),
    ("a part of it", lambda xs, w: network(xs, w)[1]["out"][-1, 1:3, ::2], 1),
    ("two of them", lambda xs, w: (lambda ys: (ys["out"][-1], ys["before"][-1]))(network(xs, w)[1]), 2),
    ("the first, in reverse", lambda xs, w: network(xs, w, reverse=True)[1]["out"][0], 1),
    ("what was scanned", lambda xs, w: lax.scan(lambda c, x: (c @ w, x), xs[0], xs)[1][-1], 1),
]


def test_only_the_last_row_is_kept() -> None:
    found = all_kept({name: (fun, sequence()) for name, fun, _ in ROWS}, passes=PASSES)
    for name, _, carries in ROWS:
        for scan in (node for node in found[name][0] if node.op == "scan"):
            assert len(scan.results) == scan.params["num_carry"] == carries, name


def test_the_last_row_keeps_every_bit() -> None:
    programs = {name: (fun, sequence()) for name, fun, _ in ROWS[:4]}
    passes = "inline,dce,fixpoint(movement,cse,demand,dce)"
    all_kept(programs, passes=passes, level="exact", grad=False, vmap=False, export=False)


KEPT: list[tuple[str, Program]] = [
    ("all rows", lambda xs, w: network(xs, w)[1]["out"].sum(0)),
    ("another row", lambda xs, w: network(xs, w)[1]["out"][-2]),
    ("two rows", lambda xs, w: network(xs, w)[1]["out"][-2:]),
    ("the first, forward", lambda xs, w: network(xs, w)[1]["out"][0]),
    ("a row by number", lambda xs, w: network(xs, w)[1]["out"][jnp.argmax(xs[:, 0, 0])]),
    ("the last and all", lambda xs, w: (lambda ys: (ys[-1], ys))(network(xs, w)[1]["out"])),
]


def test_a_scan_of_which_only_a_row_is_read_vanishes() -> None:
    graph = same(lambda xs, w: lax.map(lambda x: jnp.tanh(x @ w), xs)[-1], *sequence(), passes=PASSES)
    assert all(node.op != "scan" for node in graph)


def test_other_rows_keep_them_all() -> None:
    programs = {name: (fun, sequence()) for name, fun in KEPT}
    found = all_kept(programs, passes=PASSES, vmap=False, export=False)
    for name, (_, report) in found.items():
        assert "last-row-of-scan" not in report.rules, name


def test_a_scan_of_one_step_stays() -> None:
    assert "last-row-of-scan" not in fired(ROWS[0][1], *sequence(1), passes=PASSES)
