"""Loops over layers inside of loops over time: they change places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import io_callback

from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import profit
from tests.passes._check import run, same
from tests.passes._golden import assert_every_gate
from tests.passes._loops import alike, around, normal

FULL = around("counted,interchange,projection,parallel,recurrence")
RULE = "layer-by-layer"
Cell = Callable[..., tuple[Any, Any]]


def stacked(cell: Cell, **time: Any) -> Callable[..., Any]:
    """A program that runs layers of a cell step by step: of x, states, and weights."""

    def program(x: Any, states: Any, *weights: Any) -> Any:
        def step(states: Any, xt: Any) -> Any:
            y, states = lax.scan(lambda y, p: cell(y, *p), xt, (states, *weights))
            return states, y

        return lax.scan(step, states, x, **time)

    return program


def plain(y: Any, h: Any, w: Any, u: Any) -> tuple[Any, Any]:
    z = jnp.tanh(y @ w + h @ u)
    return z, z


def lstm(y: Any, state: Any, w: Any, u: Any) -> tuple[Any, Any]:
    h, c = state
    i, f, g, o = jnp.split(y @ w + h @ u, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h, (h, c)


def gated(y: Any, h: Any, w: Any) -> tuple[Any, Any]:
    z = jax.nn.sigmoid(y @ w)
    h = z * h + (1 - z) * y
    return y + jnp.tanh(h), h


def weights_of(layers: int) -> tuple[Any, Any]:
    return normal(layers, 32, 32) * 0.2, normal(layers, 32, 32, seed=1) * 0.2


X, H = normal(5, 32), normal(3, 32)
W, U = weights_of(3)
LSTM = X, H, normal(3, 32, seed=2), normal(3, 32, 128) * 0.2, normal(3, 32, 128, seed=3) * 0.2


def depths(graph: Graph) -> list[list[int]]:
    """The lengths of the loops of a graph, each with that of the loop in it."""
    loops = [node for node in graph if node.op == "scan"]
    return [
        [n.params["length"], *(m.params["length"] for m in n.regions[0] if m.op == "scan")] for n in loops
    ]


def test_layers_go_outside_and_their_projections_out_of_the_loop() -> None:
    graph = same(stacked(plain), X, H, W, U, passes=FULL)
    assert depths(graph) == [[3, 5]]
    (layers,) = [node for node in graph if node.op == "scan"]
    assert [node.op for node in layers.regions[0]] == ["dot_general", "scan"]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_gradient_of_lstm_layers(target: str) -> None:
    """The backward loop over time changes places too; its sums of products are one product for each layer."""

    def slopes(*args: Any) -> Any:
        def loss(x: Any, h: Any, c: Any, w: Any, u: Any) -> Any:
            return jnp.sum(jnp.sin(stacked(lstm)(x, (h, c), w, u)[1]))

        return jax.grad(loss, (0, 1, 2, 3, 4))(*args)

    graph, report = alike(slopes, *LSTM, passes=FULL, target=target, grad=False)
    assert report.rules[RULE] == 2 and report.rules["accumulated-product"] == 2
    assert [loops for loops in depths(graph) if len(loops) > 1] == [[3, 5], [3, 5]]


def test_other_work_stays_in_the_loop_over_time() -> None:
    """Inputs computed of x, outputs of several results, a loss, the states before; both loops backwards."""

    def program(x: Any, h: Any, w: Any, u: Any, v: Any) -> Any:
        def step(carry: Any, xt: Any) -> Any:
            h, total, seen = carry
            before = h

            def layer(y: Any, p: Any) -> Any:
                h, w, u, bias = p
                z = jnp.tanh(y @ w + h @ u + bias)
                return z, (z, y)

            biases = jnp.outer(jnp.arange(3.0), xt) * 0.1
            y, (h, ys) = lax.scan(layer, jnp.sin(xt), (h, w, u, biases), reverse=True)
            total = total + jnp.sum(jnp.tanh(total + y))
            return (h, total, seen + 1), (y @ v, ys[1], before[0], h[2])

        return lax.scan(step, (h, 0.0, 0), x, reverse=True)

    graph, report = alike(program, X, H, W, U, normal(32, 8), passes=FULL)
    assert report.rules[RULE] == 1
    assert [5] in depths(graph) and [3, 5] in depths(graph)


def test_linear_layers_become_parallel_on_a_gpu() -> None:
    x = normal(40, 32)
    for program, args in (
        (stacked(gated), (x, H, W)),
        (jax.vmap(stacked(gated), (0, 0, None)), (normal(2, 40, 32), normal(2, 3, 32), W)),
    ):
        graph, report = alike(program, *args, passes=FULL)
        assert report.rules[RULE] == report.rules["linear-recurrence"] == 1
        assert depths(graph) == [[3]]


def test_layers_that_are_counted() -> None:
    """Weights and states by index, states written where they were read."""

    def program(x: Any, h: Any, w: Any, u: Any) -> Any:
        def step(h: Any, xt: Any) -> Any:
            def layer(i: Any, state: Any) -> Any:
                y, h = state
                y = jnp.tanh(y @ w[i] + h[i] @ u[i])
                return y, h.at[i].set(y)

            y, h = lax.fori_loop(0, 3, layer, (xt, h))
            return h, y

        return lax.scan(step, h, x)

    assert depths(same(program, X, H, W, U, passes=f"{around('counted')},{FULL}")) == [[3, 5]]


def test_numbers_that_are_not_finite_stay_in_their_time() -> None:
    x = X.at[3].set(jnp.nan).at[4].set(jnp.inf)
    graph = same(stacked(plain), x, H, W, U, passes=FULL, grad=False)
    assert depths(graph) == [[3, 5]]


def top_first(x: Any, h: Any, w: Any, u: Any) -> Any:
    """The first layer reads what the last one made at the time before."""

    def step(h: Any, xt: Any) -> Any:
        y, h = lax.scan(lambda y, p: plain(y, *p), xt + h[-1], (h, w, u))
        return h, y

    return lax.scan(step, h, x)


def neighbours(x: Any, h: Any, w: Any, u: Any) -> Any:
    """Each layer reads all states of the time before."""

    def step(h: Any, xt: Any) -> Any:
        y, h = lax.scan(lambda y, p: plain(y + jnp.sum(h, 0), *p), xt, (h, w, u))
        return h, y

    return lax.scan(step, h, x)


def moved_up(x: Any, h: Any, w: Any, u: Any) -> Any:
    """Each layer reads the state of the layer below."""

    def step(h: Any, xt: Any) -> Any:
        y, h = lax.scan(lambda y, p: plain(y, *p), xt, (h, w, u))
        return jnp.roll(h, 1, 0), y

    return lax.scan(step, h, x)


def deep(x: Any, h: Any, w: Any, u: Any) -> Any:
    """The loop in the loop hands the state on."""

    def step(h: Any, xt: Any) -> Any:
        h = lax.scan(lambda h, p: (jnp.tanh(xt @ p[0] + h @ p[1]), None), h, (w, u))[0]
        return h, h

    return lax.scan(step, h[0], x)


def printed(x: Any, h: Any, w: Any, u: Any) -> Any:
    def cell(y: Any, *p: Any) -> tuple[Any, Any]:
        io_callback(lambda value: None, None, y[0], ordered=True)
        return plain(y, *p)

    return stacked(cell)(x, h, w, u)


@pytest.mark.parametrize("program", [top_first, neighbours, moved_up, deep, printed])
def test_layers_that_need_more_stay(program: Any) -> None:
    _, report = run(program, X, H, W, U, passes="inline,dce,interchange", target="gpu")
    assert RULE not in report.rules


def test_only_where_it_pays() -> None:
    def fires(program: Any, *args: Any, target: str = "cpu", level: str = "reassociate") -> bool:
        passes = "inline,dce,interchange"
        return RULE in run(program, *args, passes=passes, target=target, level=level)[1].rules

    rows = X[:, None].repeat(8, 1), H[:, None].repeat(8, 1), W, U
    elementwise = stacked(lambda y, h: ((z := jnp.tanh(y + h)), z))
    large = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4096, 32, 1024), (3, 32, 1024))]
    weights = [jax.ShapeDtypeStruct((3, 1024, 1024), jnp.float32)] * 2
    assert fires(stacked(plain), X, H, W, U)
    assert fires(stacked(plain), *rows, target="gpu") and not fires(stacked(plain), *rows)
    assert not fires(elementwise, X, H, target="gpu")
    assert not fires(stacked(plain), X[:3], H, W, U)
    assert not fires(stacked(plain), *large, *weights)
    assert not fires(stacked(plain), X, H, W, U, level="exact")


def test_layers_outside_stay_there() -> None:
    """Each layer does all times already: the other order would have as many products, but shorter ones."""

    def own(x: Any, h: Any, w: Any, u: Any) -> Any:
        def layer(xs: Any, p: Any) -> Any:
            h, w, u = p
            h, ys = lax.scan(lambda h, y: plain(y, h, w, u), h, xs)
            return ys, h

        return lax.scan(layer, x, (h, w, u))

    def shared(x: Any, h: Any, w: Any, u: Any) -> Any:
        def layer(xs: Any, h: Any) -> Any:
            h, ys = lax.scan(lambda h, y: plain(y, h, w[0], u[0]), h, xs)
            return ys, h

        return lax.scan(layer, x, h)

    for program in (own, shared):
        for target in ("cpu", "gpu"):
            args = normal(12, 32), normal(4, 32), *weights_of(4)
            _, report = run(program, *args, passes="inline,dce,interchange", target=target)
            assert RULE not in report.rules


def test_what_layers_read_may_not_be_too_large_for_all_times() -> None:
    """Numbers that are made at every time, many for each layer."""

    def program(x: Any, h: Any, w: Any, u: Any, many: Any) -> Any:
        def step(h: Any, xt: Any) -> Any:
            def layer(y: Any, p: Any) -> Any:
                *rest, noise = p
                return plain(y * jnp.max(noise), *rest)

            y, h = lax.scan(layer, xt, (h, w, u, jnp.sin(many * xt[0])))
            return h, y

        return lax.scan(step, h, x)

    for size, fires in ((64, True), (1 << 20, False)):
        shapes = (64, 32), (3, 32), (3, 32, 32), (3, 32, 32), (3, size)
        args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        _, report = run(program, *args, passes="inline,dce,interchange", target="gpu")
        assert (RULE in report.rules) == fires


def test_they_do_not_change_places_again() -> None:
    with profit.disregarded():
        _, report = run(stacked(plain), X, normal(4, 32), *weights_of(4), passes="default")
    assert report.rules[RULE] == 1


def test_every_gate() -> None:
    assert assert_every_gate(stacked(plain), X, H, W, U, passes="inline,dce,interchange,projection") >= 2
