"""Batching: choices by one number are made before what they are between, and calls on slices are one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.rewrite import profit
from tests.passes._check import all_kept, optimised, run
from tests.passes._movement import array

PASSES = "default"
X, W = array((4, 8)), array((8, 8), seed=1)
ONE, TWO = jnp.float32(1.0), jnp.int32(2)


def each(function: Any, x: jax.Array, number: jax.Array) -> Any:
    """A function of a row and a number, for all rows and the same number, which vmap takes for many."""
    return jax.vmap(function)(x, jnp.broadcast_to(number, (len(x),)))


def looped(x: jax.Array, w: jax.Array) -> jax.Array:
    made: jax.Array = lax.fori_loop(0, 3, lambda i, y: jax.nn.relu(y @ w), x)
    return made


def test_only_what_a_number_chooses_is_computed() -> None:
    programs: dict[str, Any] = {
        "where": (lambda x, w, c: jnp.where(c > 0, x @ w @ w, jnp.tanh(x)), (X, W, ONE)),
        "two choices": (
            lambda x, w, c: (jnp.where(c > 0, x @ w, x), jnp.where(c > 0, jnp.sin(x), x @ w.T)),
            (X, W, -ONE),
        ),
        "cond": (
            lambda x, w, c: each(lambda r, c: lax.cond(c > 0, lambda: r @ w, lambda: r), x, c),
            (X, W, ONE),
        ),
        "loop": (
            lambda x, w, c: each(lambda r, c: lax.cond(c > 0, lambda: looped(r, w), lambda: r), x, c),
            (X, W, ONE),
        ),
        "switch": (
            lambda x, w, c: each(
                lambda r, c: lax.switch(c, [lambda: r @ w, lambda: r, lambda: r @ w @ w]), x, c
            ),
            (X, W, TWO + 5),
        ),
    }
    with profit.disregarded():
        for name, (graph, report) in all_kept(programs, passes=PASSES).items():
            assert report.rules["choice-by-number"] >= 1, name
            assert any(node.op == "cond" for node in graph), name
            assert not any(node.op in ("dot_general", "scan") for node in graph), name


def test_a_vmapped_cond_is_the_cond() -> None:
    def program(x: jax.Array, w: jax.Array, c: jax.Array) -> Any:
        return each(lambda r, c: lax.cond(c, lambda: r @ w, lambda: r), x, c)

    with profit.disregarded():
        graph = optimised(program, X, W, jnp.bool_(True), passes=PASSES)
    text = graph.to_text()
    assert [node.op for node in graph] == ["convert_element_type", "cond"]
    assert "select_n" not in text and "stop_gradient" not in text


def test_choices_that_stay() -> None:
    programs: dict[str, Any] = {
        "row by row": (lambda x, w, c: jnp.where(c[:, None] > 0, x @ w, x), (X, W, X[:, 0])),
        "also read elsewhere": (lambda x, w, c: (lambda y: (jnp.where(c > 0, y, x), y))(x @ w), (X, W, ONE)),
        "elementwise": (lambda x, c: jnp.where(c > 0, jnp.sin(x), x), (X, ONE)),
        "of numbers": (lambda x, w, c: jnp.where(c > 0, (x @ w).sum(), c), (X, W, ONE)),
    }
    with profit.disregarded():
        for name, (_, report) in all_kept(programs, passes=PASSES, grad=False).items():
            assert "choice-by-number" not in report.rules, name
    _, report = run(lambda x, w, c: jnp.where(c > 0, x @ w, x), X, W, ONE, passes=PASSES)
    assert "choice-by-number" not in report.rules, "it saves less than the choice costs"


def test_infinities_of_what_is_not_chosen_stay_away() -> None:
    def program(x: jax.Array, w: jax.Array, c: jax.Array) -> jax.Array:
        return jnp.where(c > 0, x @ (w / (c - c)), x)

    with profit.disregarded():
        graph = optimised(program, X, W, ONE, passes=PASSES)
    assert any(node.op == "cond" for node in graph)
    programs = {"chosen": (program, (X, W, ONE)), "not chosen": (program, (X, W, -ONE))}
    with profit.disregarded():
        all_kept(programs, passes=PASSES, grad=False, export=False)


def test_calls_on_slices_of_one_array_are_one_call() -> None:
    x, w = array((4, 512)), array((512, 512), seed=1)
    programs: dict[str, Any] = {
        "rows": (lambda x, w: jnp.stack([jnp.tanh(x[i] @ w) for i in range(4)]), (x, w)),
        "layers": (lambda x, w: jnp.stack([jax.nn.relu(x[i] @ w) @ w.T for i in range(4)]), (x, w)),
        "blocks": (
            lambda x, w: jnp.concatenate([x[i : i + 1] @ w for i in range(4)]),
            (x, w),
        ),
    }
    for name, (graph, report) in all_kept(programs, passes=PASSES, export=False).items():
        assert report.rules["stacked-products"] == 1, name
        assert sum(node.op == "dot_general" for node in graph) <= 2, name


def test_calls_that_stay_apart() -> None:
    x, w = array((4, 128, 64)), array((64, 64), seed=1)
    programs: dict[str, Any] = {
        "many rows": (lambda x, w: jnp.stack([x[i] @ w for i in range(4)]), (x, w)),
        "in another order": (lambda x, w: jnp.stack([x[3 - i, :4] @ w for i in range(4)]), (x, w)),
        "own columns": (
            lambda x, w: jnp.stack([x[0] @ w[:, 16 * i : 16 * i + 16] for i in range(4)]),
            (x, w),
        ),
    }
    for name, (_, report) in all_kept(programs, passes=PASSES, grad=False, vmap=False, export=False).items():
        assert "stacked-products" not in report.rules, name
