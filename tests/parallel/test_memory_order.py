"""The order in which operations run, where it decides what is there at once."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.ir import trace
from lepton_jax.ir.cost import bytes_of
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.parallel.prediction.order import behind_loops, ordered
from tests.parallel._memory import array


def test_a_loop_that_frees_more_runs_before_gradients_that_do_not_need_it() -> None:
    def step(layers: jax.Array, head: jax.Array, x: jax.Array) -> Any:
        return jax.grad(lambda layers, head: loss(layers, head, x), (0, 1))(layers, head)

    def loss(layers: jax.Array, head: jax.Array, x: jax.Array) -> Any:
        x, _ = jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, layers)
        return (jnp.sin(x @ head) ** 2).sum()

    for rows, behind in (
        (16384, True),
        (256, False),
    ):  # saved between layers is more, or less, than the weights
        args = array(8, 1024, 1024), array(1024, 512), array(rows, 1024)
        graph = inline_calls(trace(step, *args))
        order = behind_loops(list(graph), lambda node: sum(map(bytes_of, node.results)), bytes_of)
        loops = [i for i, node in enumerate(order) if node.op == "scan"]
        (place,) = (
            i
            for i, node in enumerate(order)
            if node.results[0].shape in ((512, 1024), (1024, 512)) and node.op == "dot_general"
        )
        assert (place > loops[-1]) is behind
        assert sorted(map(id, order)) == sorted(map(id, graph))


def test_of_two_products_the_one_that_frees_runs_first() -> None:
    def pair(a: jax.Array, o: jax.Array, v: jax.Array) -> Any:
        w = jnp.sin(a)
        return jnp.einsum("ik,jk->ij", o, v), jnp.einsum("ij,ik->jk", w, o)

    graph = inline_calls(trace(pair, array(64, 64), array(64, 8), array(64, 8)))
    order = ordered(graph, lambda value: 4 * math.prod(value.shape))
    first, second = (node for node in order if node.op == "dot_general")
    assert (first.results[0].shape, second.results[0].shape) == ((64, 8), (64, 64))
    assert sorted(map(id, order)) == sorted(map(id, graph))
