"""Batching: products with parts of one array as one product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lepton_jax.rewrite import profit
from tests.passes._check import all_kept, fired, kept, optimised
from tests.passes._movement import array

PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,dce,batching,inline)"
NAME = "sliced-products"

Program = Callable[..., Any]


def recurrent(x: jax.Array, w: jax.Array) -> jax.Array:
    """A cell with three gates in one weight, as people write it."""

    def step(h: jax.Array, xt: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b, c = jnp.split(w, 3, axis=1)
        h = jnp.tanh(h @ a) * jax.nn.sigmoid(h @ b) + jnp.tanh(h @ c) + xt
        return h, h

    return lax.scan(step, jnp.zeros(x.shape[1:]), x)[1]


FIRES: dict[str, tuple[Program, tuple[tuple[int, ...], ...]]] = {
    "columns": (lambda x, w: [x @ w[:, :3], x @ w[:, 3:5], x @ w[:, 5:]], ((2, 4), (4, 9))),
    "columns in another order": (lambda x, w: [x @ w[:, 5:8], x @ w[:, 3:5]], ((2, 4), (4, 9))),
    "split": (lambda x, w: [x @ v for v in jnp.split(w, 3, axis=1)], ((2, 4), (4, 9))),
    "rows of a transposed weight": (lambda x, w: [x @ w[:3].T, x @ w[3:].T], ((2, 4), (9, 4))),
    "a batch": (lambda x, w: [x @ w[:, :3], x @ w[:, 3:]], ((2, 3, 4), (4, 9))),
    "parts of the input": (lambda x, w: [jnp.sin(x[:1] @ w), x[1:] @ w], ((5, 4), (4, 3))),
    "weights that lie apart": (lambda x, w: [x @ w[0], x @ w[1]], ((2, 4), (2, 4, 3))),
    "heads": (lambda x, w: [jnp.einsum("rk,khd->rhd", x, w[:, i]) for i in (0, 1)], ((2, 4), (4, 2, 3, 5))),
    "in a loop": (recurrent, ((4, 2, 6), (6, 18))),
}


def test_one_product_is_left() -> None:
    programs = {name: (fun, tuple(map(array, shapes))) for name, (fun, shapes) in FIRES.items()}
    with profit.disregarded():
        for name, (graph, report) in all_kept(programs, passes=PASSES).items():
            assert report.rules[NAME] == 1, name
            assert sum(node.op == "dot_general" for node in graph.walk()) == 1, name


def of_products(x: jax.Array, w: jax.Array, u: jax.Array) -> list[jax.Array]:
    """Two products in parts, of which the second reads parts of the first's."""
    y = x @ w[:, :4]
    return [y[:2] @ u, y[2:] @ u, x @ w[:, 4:]]


def test_parts_of_a_merged_product() -> None:
    with profit.disregarded():
        _, report = kept(of_products, array((5, 6)), array((6, 9)), array((4, 3)), passes=PASSES)
    assert report.rules[NAME] == 2


STAYS: dict[str, tuple[Program, tuple[tuple[int, ...], ...]]] = {
    "they overlap": (lambda x, w: [x @ w[:, :5], x @ w[:, 4:]], ((2, 4), (4, 9))),
    "something is between them": (lambda x, w: [x @ w[:, :3], x @ w[:, 4:]], ((2, 4), (4, 9))),
    "strides": (lambda x, w: [x @ w[:, ::2], x @ w[:, 1::2]], ((2, 4), (4, 8))),
    "other inputs": (lambda x, w: [x @ w[:, :3], jnp.sin(x) @ w[:, 3:]], ((2, 4), (4, 9))),
    "the sum is cut": (lambda x, w: [x[:, :2] @ w[:2], x[:, 2:] @ w[2:]], ((2, 4), (4, 9))),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays(name: str) -> None:
    fun, shapes = STAYS[name]
    with profit.disregarded():
        assert NAME not in fired(fun, *map(array, shapes), passes=PASSES)


def test_it_must_pay() -> None:
    """Where the result is larger than the weight, its parts take longer to copy than those of the weight."""

    def fun(x: Any, w: Any) -> Any:
        return [x @ w[:, :512], x @ w[:, 512:]]

    def count(rows: int) -> int:
        shapes = (
            jax.ShapeDtypeStruct((rows, 512), jnp.float32),
            jax.ShapeDtypeStruct((512, 1024), jnp.float32),
        )
        return fired(fun, *shapes, passes=PASSES).get(NAME, 0)

    assert [count(rows) for rows in (1, 8, 64, 4096)] == [1, 1, 1, 0]
    assert NAME not in fired(fun, array((1, 512)), array((512, 1024)), passes=PASSES, level="exact")


def test_weights_that_lie_apart_are_not_turned_in_a_loop() -> None:
    """XLA would turn them again on every iteration: 2.4× slower for the gates of a small cell."""

    def fun(x: Any, w: Any) -> Any:
        return lax.scan(lambda h, xt: (jnp.tanh(h @ w[0]) * (h @ w[1]) + xt, None), x[0], x)[0]

    assert NAME not in fired(fun, array((32, 4, 128)), array((3, 128, 128)), passes=PASSES)


def test_the_text() -> None:
    with profit.disregarded():
        text = optimised(FIRES["columns"][0], array((2, 4)), array((4, 9)), passes=PASSES).to_text()
    assert text.count("dot_general") == 1
    assert "f32[2,9] = dot_general[dimension_numbers=(((1,),(0,)),((),()))" in text
