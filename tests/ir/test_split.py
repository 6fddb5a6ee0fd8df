"""Programs cut at their binding time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir import to_callable, trace
from lepton_jax.ir.binding import parameters_of, store
from lepton_jax.ir.split import Split, split

W = np.arange(12, dtype=np.float32).reshape(3, 4)
X = np.ones((2, 3), np.float32)


def cut(fun: Callable[..., Any], params: int, *args: Any) -> Split:
    """The parts of a program whose first arguments are parameters; together they give what it gives."""
    graph = trace(fun, *args)
    before = graph.to_text()
    parts = split(graph, range(params))
    assert graph.to_text() == before
    kept = to_callable(parts.prepare)(*args[:params])
    found = to_callable(parts.apply)(*kept, *args[params:])
    for left, right in zip(found, jax.tree.leaves(fun(*args)), strict=True):
        np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=1e-6)
    return parts


def kept_shapes(parts: Split) -> list[tuple[int, ...]]:
    return [value.shape for value in parts.prepare.outputs]


def test_what_depends_on_parameters_alone_moves_to_prepare() -> None:
    parts = cut(lambda w, s, x: x @ (w * jnp.exp(s)), 2, W, np.float32(0.5), X)
    assert [node.op for node in parts.prepare] == ["exp", "mul"]
    assert [node.op for node in parts.apply] == ["dot_general"]
    assert parts.sources == ((0, 1),)


def test_what_depends_on_no_parameter_stays() -> None:
    parts = cut(lambda w, x: x @ w + jnp.arange(4.0) * 2, 1, W, X)
    assert not list(parts.prepare)
    assert {"iota", "dot_general", "add"} <= {node.op for node in parts.apply}


def test_a_broadcast_bias_is_kept_small_and_in_its_own_shape() -> None:
    bias = np.ones(4, np.float32)
    parts = cut(lambda w, b, x: x @ w + jnp.broadcast_to(jnp.sin(b)[None], (2, 4)), 2, W, bias, X)
    assert sorted(kept_shapes(parts)) == [(3, 4), (4,)]
    assert "sin" in parts.prepare.to_text()


def test_a_tied_embedding_is_kept_once() -> None:
    parts = cut(lambda w, x, i: (x @ w.T, w[i]), 1, W.T, X, np.array([1, 0]))
    assert kept_shapes(parts) == [(4, 3)]


def test_a_lone_transpose_is_done_once() -> None:
    parts = cut(lambda w, x: jnp.sin(x) * jnp.transpose(w), 1, W.T, W)
    assert "transpose" in parts.prepare.to_text() and "transpose" not in parts.apply.to_text()


def test_what_is_marked_is_kept_and_the_rest_computed_at_each_call() -> None:
    def f(w: Any, x: Any) -> Any:
        codes = store(jnp.round(w * 2).astype(jnp.int8))
        return x @ (codes.astype(jnp.float32) / 2)

    parts = cut(f, 1, W, X)
    assert [value.dtype.name for value in parts.prepare.outputs] == ["int8"]
    assert "div" in parts.apply.to_text()


def test_unread_parameters_are_left_out() -> None:
    parts = cut(lambda w, u, x: x @ w, 2, W, W, X)
    assert parts.sources == ((0,),) and kept_shapes(parts) == [(3, 4)]


def test_effects_and_random_bits_of_the_host_are_not_taken_early() -> None:
    def f(w: Any, x: Any) -> Any:
        jax.debug.callback(lambda _: None, w)
        return x @ jax.pure_callback(lambda v: v * 2, jax.ShapeDtypeStruct((3, 4), jnp.float32), w)

    parts = cut(f, 1, W, X)
    assert not list(parts.prepare)
    assert {"debug_callback", "pure_callback"} <= {node.op for node in parts.apply}


def test_outputs_may_be_parameters_constants_and_early_values() -> None:
    parts = cut(lambda w, x: (w, jnp.exp(w), 3.0, x), 1, W, X)
    assert kept_shapes(parts) == [(3, 4), (3, 4)]
    assert not list(parts.apply)


@pytest.mark.parametrize("shape", [(0, 4), (3, 4)])
def test_gradients_flow_through_both_parts(shape: tuple[int, ...]) -> None:
    w, x = np.ones(shape, np.float32), np.ones((2, shape[0]), np.float32)
    parts = split(trace(lambda w, x: jnp.sum(jnp.tanh(x @ (w * 2))), w, x), (0,))

    def both(w: Any) -> Any:
        return to_callable(parts.apply)(*to_callable(parts.prepare)(w), x)[0]

    np.testing.assert_allclose(jax.grad(both)(w), jax.grad(lambda w: jnp.sum(jnp.tanh(x @ (w * 2))))(w))


def test_sources_are_known_inside_of_loops_and_branches() -> None:
    def f(ws: Any, b: Any, x: Any) -> Any:
        def layer(h: Any, w: Any) -> Any:
            return jnp.tanh(h @ w + b), None

        return jax.lax.scan(layer, x, ws)[0]

    graph = trace(f, np.ones((2, 3, 3), np.float32), np.ones(3, np.float32), X)
    known = parameters_of(graph, (0, 1))
    (scan,) = (node for node in graph if node.op == "scan")
    (dot,) = (node for node in scan.regions[0] if node.op == "dot_general")
    assert known[dot.operands[1]] == {0}
    assert dot.operands[0] not in known and dot.results[0] not in known
