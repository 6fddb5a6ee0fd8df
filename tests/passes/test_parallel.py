"""Loops whose iterations run at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import io_callback

import lepton_jax as lepton
from lepton_jax.ir import to_callable
from tests.passes._check import all_kept, check, run, same
from tests.passes._golden import assert_every_gate, assert_text
from tests.passes._loops import alike, around, normal, ops

PASS = "parallel"
FULL = around(PASS)
X, W = normal(6, 8), normal(8, 5, seed=1)


def layer(x: Any, w: Any) -> Any:
    return lax.map(lambda xt: jnp.tanh(xt @ w), x)


def has_loop(fun: Any, *args: Any, target: str = "cpu", passes: str = FULL) -> bool:
    """Whether a loop is left."""
    graph, _ = run(fun, *args, passes=passes, target=target)
    return any(op in ("scan", "while") for op in ops(graph))


def test_golden() -> None:
    graph = same(layer, X, W, passes=FULL)
    assert_text(
        graph,
        """
        graph f(%0: f32[6,8], %1: f32[8,5]) {
          %2: f32[6,5] = DOT[dimension_numbers=(((1,),(0,)),((),())) preferred_element_type=float32] %0 %1
          %3: f32[6,5] = tanh[accuracy=None] %2
          return %3
        }
        """.replace("DOT", "dot_general"),
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_carry_that_nothing_needs(reverse: bool, dtype: Any) -> None:
    def f(x: Any, w: Any) -> Any:
        return lax.scan(lambda c, xt: (c, xt @ w), 0, x, reverse=reverse)[1]

    x, w = (X * 4).astype(dtype), (W * 4).astype(dtype)
    assert ops(same(f, x, w, passes=FULL)) == ["dot_general"]


def test_counters_shifts_and_folds() -> None:
    def f(x: Any, w: Any) -> Any:
        def step(state: Any, xt: Any) -> Any:
            i, before, total, most, all_of, any_of, bits = state
            z = xt @ w
            state = (
                i + 2,
                z,
                total + z,
                jnp.maximum(most, z),
                all_of & (z > -1),
                any_of | (z > 1),
                bits ^ (z > 0).astype(jnp.int32),
            )
            return state, (i * z, before)

        zero = jnp.zeros(5)
        flags = zero > 0
        start = (jnp.int32(3), zero + 7, zero, zero - jnp.inf, ~flags, flags, flags.astype(jnp.int32))
        return lax.scan(step, start, x)

    graph = same(f, X, W, passes=FULL)
    assert "scan" not in ops(graph)
    assert {"reduce_sum", "reduce_max", "reduce_and", "reduce_or"} <= set(ops(graph))


def test_shift_and_counter_in_reverse() -> None:
    def f(x: Any, w: Any) -> Any:
        def step(state: Any, xt: Any) -> Any:
            i, before = state
            z = xt @ w
            return (i - 1, z), (i * z, before)

        return lax.scan(step, (jnp.int32(3), jnp.ones(5)), x, reverse=True)

    assert "scan" not in ops(same(f, X, W, passes=FULL))


def test_products_that_cannot_overflow() -> None:
    def f(x: Any, w: Any) -> Any:
        return lax.scan(lambda c, xt: (c * jax.nn.sigmoid(xt @ w), None), jnp.ones(5), x)[0]

    assert "reduce_prod" in ops(same(f, X, W, passes=FULL))


def test_factors_that_may_overflow_stay() -> None:
    def f(x: Any, w: Any) -> Any:
        return lax.scan(lambda c, xt: (c * (xt @ w), None), jnp.full(5, 1e-30), x)[0]

    assert has_loop(f, X, W)
    assert has_loop(f, X, W, target="gpu")


def test_loops_in_loops() -> None:
    def f(x: Any, w: Any, u: Any) -> Any:
        def one(xs: Any) -> Any:
            return lax.scan(lambda h, xt: (jnp.tanh(xt @ w + h @ u), None), jnp.zeros(5), xs)[0]

        return lax.map(one, x)

    graph = same(f, normal(3, 6, 8), W, normal(5, 5, seed=2) * 0.3, passes=FULL)
    (loop,) = [node for node in graph.walk() if node.op == "scan"]
    assert loop.params["length"] == 6
    assert loop.graph is graph


def test_chunks_bound_the_memory() -> None:
    def f(x: Any, w: Any) -> Any:
        def step(total: Any, xt: Any) -> Any:
            z = jnp.tanh(xt @ w)
            return total + jnp.sum(z), jnp.sum(z, 1)

        return lax.scan(step, 0.0, x)

    x, w = normal(70, 512, 4) * 0.1, normal(4, 768)
    graph, report = run(f, x, w, passes=FULL)
    assert report.rules["loop-at-once"] == 1
    (loop,) = [node for node in graph if node.op == "scan"]
    assert 1 < loop.params["length"] < 70
    check(jax.jit(f)(x, w), tuple(jax.jit(to_callable(graph))(x, w)))
    again, _ = run(lambda *a: to_callable(graph)(*a), x, w, passes=FULL)
    assert ops(again).count("scan") == 1


def test_threefry_draws_the_same_numbers() -> None:
    def f(key: Any, w: Any) -> Any:
        return lax.map(lambda k: jax.random.normal(k, (8,)) @ w, jax.random.split(key, 6))

    key = jax.random.key(3, impl="threefry2x32")
    graph, _ = run(f, key, W, passes=FULL)
    assert "scan" not in ops(graph)
    check(f(key, W), to_callable(graph)(key, W)[0])


def test_other_generators_stay() -> None:
    def f(key: Any, w: Any) -> Any:
        return lax.map(lambda k: jax.random.normal(k, (8,)) @ w, jax.random.split(key, 6))

    assert has_loop(f, jax.random.key(3, impl="rbg"), W)


def test_effects_branches_and_while_loops_stay() -> None:
    def printing(x: Any, w: Any) -> Any:
        def one(xt: Any) -> Any:
            io_callback(lambda value: None, None, xt[0], ordered=True)
            return xt @ w

        return lax.map(one, x)

    def branching(x: Any, w: Any) -> Any:
        return lax.map(lambda xt: lax.cond(xt[0] > 0, lambda: xt @ w, lambda: jnp.zeros(5)), x)

    def waiting(x: Any, w: Any) -> Any:
        return lax.map(lambda xt: lax.while_loop(lambda z: z[0] < 9, lambda z: 2 * z + 1, xt) @ w, x)

    for fun in (printing, branching, waiting):
        assert has_loop(fun, X, W)
        assert has_loop(fun, X, W, target="gpu")


def test_what_an_iteration_needs_stays() -> None:
    def carried(x: Any, w: Any) -> Any:
        return lax.scan(lambda h, xt: (jnp.tanh(xt @ w + h), h), jnp.zeros(5), x)

    def read_twice(x: Any, w: Any) -> Any:
        return lax.scan(lambda c, xt: (c + xt @ w, jnp.sin(c)), jnp.zeros(5), x)

    assert has_loop(carried, X, W) and has_loop(carried, X, W, target="gpu")
    assert has_loop(read_twice, X, W)


def test_elementwise_loops_stay_on_a_cpu() -> None:
    def f(x: Any) -> Any:
        return lax.map(lambda xt: jnp.sin(xt) * 2, x)

    assert has_loop(f, X)
    graph, _ = alike(f, X, passes=FULL)
    assert ops(graph) == ["sin", "mul"]


def test_tiny_products_stay_on_a_cpu() -> None:
    def f(x: Any) -> Any:
        return lax.map(lambda xt: jnp.tanh(xt @ xt.T), x)

    assert has_loop(f, normal(6, 4, 4)) and not has_loop(f, normal(6, 8, 8))
    assert not has_loop(f, normal(6, 4, 4), target="gpu")


def filtered(row: Any) -> Any:
    """A filter along a row of numbers, or of vectors."""
    return lax.scan(lambda c, xt: ((y := jnp.tanh(0.9 * c + xt)), y), 0 * row[0], row)[1]


def roots(x: Any) -> Any:
    def one(i: Any, out: Any) -> Any:
        return out.at[i].set(lax.fori_loop(0, 5, lambda _, y: 0.5 * (y + x[i] / y), x[i]))

    return lax.fori_loop(0, x.shape[0], one, jnp.zeros_like(x))


def test_loops_over_few_numbers_change_places_on_a_cpu() -> None:
    def each_row(x: Any) -> Any:
        return lax.map(filtered, x)

    programs = {
        "rows": (each_row, (X,)),
        "vectors": (each_row, (normal(3, 6, 4),)),
        "roots": (roots, (X[0] ** 2 + 1,)),
    }
    for name, (graph, report) in all_kept(programs, passes=around("counted,parallel")).items():
        assert report.rules.get("loop-at-once") == 1, name
        assert ops(graph).count("scan") == 1, name


def test_other_loops_in_elementwise_loops_stay_on_a_cpu() -> None:
    def each(x: Any) -> Any:
        return lax.map(filtered, x)

    def picked(x: Any) -> Any:
        def one(row: Any) -> Any:
            return lax.fori_loop(0, 4, lambda _, y: row[y.astype(jnp.int32)], row[0])

        return lax.map(one, x)

    def the_same(x: Any) -> Any:
        return lax.map(lambda row: row + filtered(x[0])[-1], x)

    shapes = {"wide": (each, (4, 8, 17)), "picked": (picked, (4, 8)), "the same": (the_same, (4, 8))}
    for name, (fun, shape) in shapes.items():
        explained = lepton.optimize(fun, target="cpu").explain(jax.ShapeDtypeStruct(shape, jnp.float32))
        assert "loop-at-once" not in explained.report.rules, name
        assert name != "wide" or "there is no product in the loop" in str(explained)
    narrow = lepton.optimize(each, target="cpu").trace(jax.ShapeDtypeStruct((4, 8, 16), jnp.float32))
    assert narrow.report.rules["loop-at-once"] == 1


def test_sums_that_bound_memory_stay() -> None:
    """Gradients summed over small batches: the loop is there to save memory."""

    def f(x: Any, w: Any) -> Any:
        def step(total: Any, xt: Any) -> Any:
            return total + jax.grad(lambda w: jnp.sum(jnp.sin(xt @ w)))(w), None

        return lax.scan(step, jnp.zeros_like(w), x)[0]

    assert has_loop(f, normal(6, 2, 64), normal(64, 64))


def test_nan_and_infinity_come_through() -> None:
    def f(x: Any, w: Any) -> Any:
        return lax.scan(lambda c, xt: (jnp.maximum(c, xt @ w), None), jnp.zeros(5), x)[0]

    same(f, X.at[1, 2].set(jnp.nan), W, passes=FULL, grad=False)
    same(f, X.at[1, 2].set(jnp.inf), W, passes=FULL, grad=False)


def test_batches_of_no_rows() -> None:
    graph = same(layer, jnp.zeros((4, 0, 8)), W, passes=FULL)
    assert "scan" not in ops(graph)


def test_gradient_programs() -> None:
    def loss(x: Any, w: Any) -> Any:
        return jax.grad(lambda x: jnp.sum(layer(x, w) ** 2))(x)

    assert "scan" not in ops(same(loss, X, W, passes=FULL))


def test_symbolic_lengths_stay() -> None:
    args = jax.export.symbolic_args_specs((X, W), ("n, 8", "8, 5"))
    exported = jax.export.export(jax.jit(layer))(*args)
    check(layer(X, W), exported.call(X, W))
    graph, report = run(layer, *args, passes=PASS)
    assert report.rules == {} and "scan" in ops(graph)


def test_level_exact_switches_it_off() -> None:
    graph, _ = run(layer, X, W, passes=FULL, level="exact")
    assert "scan" in ops(graph)


def test_every_gate() -> None:
    def f(x: Any, w: Any) -> Any:
        def step(state: Any, xt: Any) -> Any:
            i, before, total = state
            z = xt @ w
            return (i + 1, z, total + z), (i * z, before)

        return lax.scan(step, (0, jnp.zeros(5), jnp.zeros(5)), x)

    assert assert_every_gate(f, X, W, passes=f"inline,dce,{PASS}") >= 3


def test_running_sums_are_left_to_the_pass_on_recurrences() -> None:
    def f(x: Any) -> Any:
        return lax.scan(lambda c, xt: (c + xt, c), jnp.zeros(8), x)

    graph, _ = run(f, X, passes=FULL, target="gpu")
    assert "scan" in ops(graph)


def test_products_that_keep_a_cpu_busy_stay_in_a_loop() -> None:
    def fun(x: Any, w: Any) -> Any:
        return lax.map(lambda row: jnp.tanh(row @ w), x)

    for rows, fires in ((8, True), (256, False)):
        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, rows, 128), (128, 128))]
        explained = lepton.optimize(fun, "inline,dce,parallel", target="cpu").explain(*shapes)
        assert ("loop-at-once" in explained.report.rules) == fires
        assert ("a product of 8 MFLOP keeps a CPU busy" in str(explained)) != fires
