"""Products out of loops: before them, after them, and sums of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import io_callback

from tests.passes._check import run, same
from tests.passes._golden import assert_every_gate, assert_text
from tests.passes._loops import alike, around, body, normal, ops

PASS = "projection"
FULL = around(PASS)
X, W, U = normal(6, 1, 32), normal(32, 40, seed=1) * 0.2, normal(40, 40, seed=2) * 0.1


def rnn(x: Any, w: Any, u: Any) -> Any:
    def step(h: Any, xt: Any) -> tuple[Any, Any]:
        h = jnp.tanh(xt @ w + h @ u)
        return h, h

    return lax.scan(step, jnp.zeros((*x.shape[1:-1], u.shape[0]), x.dtype), x)[1]


def leaky(x: Any, w: Any, v: Any) -> Any:
    def step(h: Any, xt: Any) -> tuple[Any, Any]:
        h = 0.9 * h + jax.nn.relu(xt @ w)
        return h, jnp.sin(h @ v)

    return lax.scan(step, jnp.zeros((*x.shape[1:-1], w.shape[1]), x.dtype), x)[1]


def test_golden() -> None:
    graph = same(rnn, X, W, U, passes=FULL)
    dots = "dot_general[dimension_numbers=((({},),(0,)),((),())) preferred_element_type=float32]"
    scan = "scan[length=6 num_carry=1 num_consts=1 reverse=False unroll=1]"
    assert_text(
        graph,
        f"""
        graph f(%0: f32[6,1,32], %1: f32[32,40], %2: f32[40,40]) {{
          %3: f32[1,40] = broadcast_in_dim[broadcast_dimensions=() shape=(1,40)] 0.0
          %4: f32[6,1,40] = {dots.format(2)} %0 %1
          _: f32[1,40], %5: f32[6,1,40] = {scan} %2 %3 %4 {{
            region body(%0: f32[40,40], %1: f32[1,40], %2: f32[1,40]) {{
              %3: f32[1,40] = {dots.format(1)} %1 %0
              %4: f32[1,40] = add %2 %3
              %5: f32[1,40] = tanh[accuracy=None] %4
              return %5, %5
            }}
          }}
          return %5
        }}
        """,
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_gates_of_an_lstm(reverse: bool) -> None:
    def lstm(x: Any, w: Any, u: Any, b: Any) -> Any:
        def step(state: Any, xt: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.split(xt @ w + b + h @ u, 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        return lax.scan(step, (jnp.zeros(16), jnp.zeros(16)), x, reverse=reverse)

    graph = same(lstm, normal(6, 20), normal(20, 64) * 0.2, normal(16, 64) * 0.2, normal(64), passes=FULL)
    assert body(graph).count("dot_general") == 1
    assert "add" in ops(graph)[: ops(graph).index("scan")]  # the bias moved too


def test_matrix_times_vector() -> None:
    def f(x: Any, w: Any) -> Any:
        return lax.scan(lambda h, xt: ((y := jnp.tanh(h + w @ xt)), y), jnp.zeros(40), x)

    graph = same(f, normal(6, 32), normal(40, 32), passes=FULL)
    assert body(graph) == ["add", "tanh"]


def test_both_sides_of_a_cheap_recurrence() -> None:
    graph = same(leaky, normal(8, 3, 32), W, normal(40, 30, seed=3), passes=FULL)
    assert sorted(body(graph)) == ["add", "mul"]
    _, report = run(leaky, normal(8, 3, 32), W, normal(40, 30, seed=3), passes=FULL)
    assert report.rules["project-inputs"] == report.rules["project-outputs"] == 1


def test_output_that_needs_no_carry() -> None:
    def f(x: Any, w: Any) -> Any:
        return lax.scan(lambda h, xt: (jnp.sin(h) + jnp.sum(xt), xt @ w), 0.0, x)

    graph = same(f, normal(6, 32), W, passes=FULL)
    assert "dot_general" not in body(graph)
    (loop,) = [node for node in graph if node.op == "scan"]
    assert len(loop.results) == 1


def test_bfloat16_and_precision_stay() -> None:
    def f(x: Any, w: Any) -> Any:
        def step(h: Any, xt: Any) -> tuple[Any, Any]:
            z = lax.dot(xt, w, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
            return jnp.tanh(h + z), h

        return lax.scan(step, jnp.zeros(40), x)[1]

    graph = same(f, X[:, 0].astype(jnp.bfloat16), W.astype(jnp.bfloat16), passes=FULL, grad=False)
    (dot,) = [node for node in graph if node.op == "dot_general"]
    assert dot.params["preferred_element_type"] == jnp.float32
    assert dot.params["precision"] == (lax.Precision.HIGHEST,) * 2


def test_nan_stays_in_its_iterations() -> None:
    x = X.at[2].set(jnp.nan)
    result = same(lambda x: leaky(x, W, U), x, passes=FULL, grad=False)
    assert sorted(body(result)) == ["add", "mul"]


def test_gradient_of_weights_is_one_product() -> None:
    def loss(x: Any, w: Any, u: Any) -> Any:
        return jax.grad(lambda w, u: jnp.sum(rnn(x, w, u) ** 2), (0, 1))(w, u)

    graph, report = run(loss, X, W, U, passes=FULL)
    assert report.rules["accumulated-product"] == 2
    same(loss, X, W, U, passes=FULL, grad=False)
    loops = [node for node in graph if node.op == "scan"]
    assert [loop.params["num_carry"] for loop in loops] == [1, 1]
    assert all([n.op for n in loop.regions[0]].count("dot_general") == 1 for loop in loops)


def test_accumulated_transposed_product_with_batch() -> None:
    def f(x: Any, g: Any) -> Any:
        def step(total: Any, parts: Any) -> tuple[Any, None]:
            a, b = parts
            return total + jnp.einsum("bki,bkj->bji", jnp.sin(a), b), None

        return lax.scan(step, jnp.ones((2, 5, 4)), (x, g))[0]

    graph = same(f, normal(6, 2, 3, 4), normal(6, 2, 3, 5), passes=FULL)
    assert any(node.op == "dot_general" for node in graph)


def test_on_a_gpu_every_product_moves() -> None:
    x = normal(6, 5, 32)
    graph, report = alike(rnn, x, W, U, passes=FULL)
    assert report.rules["project-inputs"] == 1
    assert body(graph).count("dot_general") == 1
    graph, report = alike(leaky, x, W, U, passes=FULL)
    assert body(graph) == ["mul", "add"] or sorted(body(graph)) == ["add", "mul"]


def rules(fun: Any, *args: Any) -> set[str]:
    """The rules of the pass that fired, without clean-up."""
    return set(run(fun, *args, passes=f"inline,{PASS}")[1].rules) - {"inline-call"}


def test_several_rows_beside_a_recurrent_product_stay() -> None:
    assert rules(rnn, normal(6, 8, 32), W, U) == set()


def test_products_of_carries_and_small_ones_stay() -> None:
    def carried(x: Any, w: Any) -> Any:
        return lax.scan(lambda h, xt: (jnp.tanh((h + xt) @ w), h), jnp.zeros(32), x)[1]

    def small(x: Any, w: Any) -> Any:
        return lax.scan(lambda h, xt: (jnp.sin(h + xt @ w), None), jnp.zeros(4), x)[0]

    assert rules(carried, normal(6, 32), normal(32, 32)) == set()
    assert rules(small, normal(6, 4), normal(4, 4)) == set()


def test_sums_of_small_products_stay_on_a_cpu() -> None:
    def f(x: Any) -> Any:
        def step(c: Any, xt: Any) -> tuple[Any, None]:
            return c + lax.dot_general(jnp.sin(xt), xt, (((), ()), ((), ()))), None

        return lax.scan(step, jnp.ones((x.shape[1], x.shape[1])), x)[0]

    assert rules(f, normal(6, 8)) == set() and rules(f, normal(6, 16)) == {"accumulated-product"}


def test_effects_stay() -> None:
    def f(x: Any, w: Any) -> Any:
        def step(h: Any, xt: Any) -> tuple[Any, None]:
            io_callback(lambda value: None, None, xt[0], ordered=True)
            return h + xt @ w, None

        return lax.scan(step, jnp.zeros(40), x)[0]

    assert rules(f, X[:, 0], W) == set()


def test_a_sum_that_the_loop_reads_stays() -> None:
    def f(x: Any) -> Any:
        def step(state: Any, xt: Any) -> Any:
            total, h = state
            total = total + jnp.outer(xt, xt)
            return (total, h + jnp.sum(total)), h

        return lax.scan(step, (jnp.zeros((4, 4)), 0.0), x)

    assert rules(f, normal(6, 4)) == set()


def test_what_grows_too_much_stays() -> None:
    def f(x: Any, w: Any) -> Any:
        def step(h: Any, xt: Any) -> tuple[Any, None]:
            return h + jnp.mean(xt @ w, 0), None

        return lax.scan(step, jnp.zeros(2048), x)[0]

    _, report = run(f, jnp.zeros((512, 64, 16)), jnp.zeros((16, 2048)), passes=f"inline,{PASS}")
    assert "project-inputs" not in report.rules


def test_level_exact_switches_it_off() -> None:
    _, report = run(rnn, X, W, U, passes=f"inline,{PASS}", level="exact")
    assert "project-inputs" not in report.rules
    _, report = run(rnn, X, W, U, passes=f"inline,{PASS}{{level=exact}}")
    assert "project-inputs" not in report.rules


def test_every_gate() -> None:
    assert assert_every_gate(leaky, normal(5, 2, 32), W, U, passes=f"inline,dce,{PASS}") >= 2
