"""Parameters' own arithmetic, out of loops, branches and calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import Graph, from_jaxpr, to_callable
from lepton_jax.ir.binding import store
from lepton_jax.rewrite import PassManager, Pipeline
from lepton_jax.targets import get_target

WS = np.linspace(-1, 1, 2 * 3 * 3, dtype=np.float32).reshape(2, 3, 3)
X = np.ones((2, 3), np.float32)


def emptied(fun: Callable[..., Any], params: int, *args: Any, passes: str = "early") -> Graph:
    """The program after the pass; it still gives what it gave, and a second run changes nothing."""
    closed = jax.make_jaxpr(fun)(*args)
    manager = PassManager(Pipeline.parse(passes), get_target("cpu"), strict=True)
    graph, report = manager.run(closed, "f", frozenset(range(params)))
    flat = jax.tree.leaves(args)
    expected = to_callable(from_jaxpr(closed))(*flat)
    for left, right in zip(to_callable(graph)(*flat), expected, strict=True):
        np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=1e-6)
    twice, again = manager.run(jax.make_jaxpr(to_callable(graph))(*flat), "f", frozenset(range(params)))
    assert report.rules.keys() <= {"early-value"} and not again.rules
    assert twice.num_nodes() == graph.num_nodes()
    return graph


def body(graph: Graph, op: str) -> str:
    (node,) = (node for node in graph if node.op == op)
    return "\n".join(region.to_text() for region in node.regions)


def test_layers_of_a_scan_are_computed_for_all_layers_before_it() -> None:
    def f(ws: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, w: (h @ jnp.sin(w), None), x, ws)[0]

    graph = emptied(f, 1, WS, X)
    assert "sin" not in body(graph, "scan")
    (sine,) = (node for node in graph if node.op == "sin")
    assert sine.results[0].shape == (2, 3, 3)


def test_nested_loops_branches_and_checkpoints_are_emptied() -> None:
    def f(ws: Any, b: Any, x: Any) -> Any:
        @jax.checkpoint
        def inner(h: Any, w: Any) -> Any:
            return h @ jnp.sin(w)

        def layer(h: Any, w: Any) -> Any:
            h, _ = jax.lax.scan(lambda g, v: (inner(g, v), None), h, jnp.stack([w, w + 1]))
            return jax.lax.cond(h.sum() > 0, lambda g: g + jnp.exp(b), lambda g: g, h), None

        return jax.lax.scan(layer, x, ws)[0]

    graph = emptied(f, 2, WS, np.ones(3, np.float32), X)
    inside = body(graph, "scan")
    assert "sin" not in inside and "exp" not in inside


def test_what_is_marked_stays_behind_the_mark() -> None:
    def f(ws: Any, x: Any) -> Any:
        def layer(h: Any, w: Any) -> Any:
            return h @ (store(jnp.round(w)).astype(jnp.float32) * 0.5), None

        return jax.lax.scan(layer, x, ws)[0]

    inside = body(emptied(f, 1, WS, X), "scan")
    assert "round" not in inside and "mul" in inside


def test_loops_that_search_move_too() -> None:
    def root(w: Any) -> Any:
        return jax.lax.while_loop(lambda v: jnp.max(v) > 1, lambda v: v / 2, w * 100)

    def f(ws: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, w: (h @ root(w), None), x, ws)[0]

    assert "while" not in body(emptied(f, 1, WS, X), "scan")


def test_late_values_and_cheap_large_ones_stay() -> None:
    def f(ws: Any, b: Any, x: Any) -> Any:
        def layer(h: Any, w: Any) -> Any:
            return jnp.sin(h) @ w + jnp.broadcast_to(b, (2, 3)), None

        return jax.lax.scan(layer, x, ws)[0]

    graph = emptied(f, 2, WS, np.ones(3, np.float32), X)
    assert "sin" in body(graph, "scan") and "broadcast" in body(graph, "scan")


def test_nothing_happens_unless_parameters_are_known() -> None:
    def f(ws: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, w: (h @ jnp.sin(w), None), x, ws)[0]

    assert "sin" in body(emptied(f, 0, WS, X), "scan")
