"""What a whole program takes: which operations count as one kernel, and how often loops and branches run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.ir import trace
from lepton_jax.ir._cost.chances import UNKNOWN_ROUNDS, rounds_of, shares
from lepton_jax.ir.cost import Rates, program_seconds
from lepton_jax.ir.graph import Graph
from lepton_jax.targets import CPU, GPU

BYTES = Rates("t", "cpu", {"float32": 1e30}, 1e30, 1.0, 0.0, 0.0)
"""Time is bytes moved."""
STARTS = Rates("t", "cpu", {"float32": 1e30}, 1e30, 1e30, 100.0, 10.0, 1.0, 0.1)
"""Time is what is started: 100 for a library's kernel, 1 for another, 10 and 0.1 for rounds of loops."""


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def seconds(rates: Rates, fun: Callable[..., Any], *args: Any) -> float:
    return program_seconds(trace(fun, *args), rates)


def test_elementwise_operations_go_through_memory_once() -> None:
    once = seconds(BYTES, lambda x: x + 1, f32(100))
    assert once == 800
    assert seconds(BYTES, lambda x: jnp.tanh(x * 2 + 1).reshape(10, 10).T - 3, f32(100)) == once
    assert seconds(BYTES, lambda x: jnp.sum(jnp.exp(x) * 2), f32(100)) == 404
    assert seconds(BYTES, jax.jit(lambda x: jax.nn.relu(x) + 1), f32(100)) == once


def test_what_is_dear_is_kept_for_all_who_read_it() -> None:
    def both(y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(y), jnp.sum(y * y)

    assert seconds(BYTES, lambda x: both(x + 1), f32(100)) == 2 * 404  # the sum is computed in both
    assert seconds(BYTES, lambda x: both(jnp.exp(x)), f32(100)) == 800 + 2 * 404


def test_products_read_and_write_memory() -> None:
    found = seconds(BYTES, lambda x, w: jnp.tanh(x @ w), f32(8, 16), f32(16, 4))
    assert found == 4 * (8 * 16 + 16 * 4 + 8 * 4) + 4 * 2 * (8 * 4)
    turned = seconds(BYTES, lambda x, w: x.T @ w, f32(16, 8), f32(16, 4))
    assert turned == 4 * (8 * 16 + 16 * 4 + 8 * 4)


def test_parts_are_read_in_lines() -> None:
    row = seconds(BYTES, lambda x, i: lax.dynamic_slice(x, (i, 0), (1, 64)) * 2, f32(64, 64), 0)
    column = seconds(BYTES, lambda x, i: lax.dynamic_slice(x, (0, i), (64, 1)) * 2, f32(64, 64), 0)
    assert column - row == 64 * 64 - 256


def test_large_new_arrays_take_longer() -> None:
    rates = replace(BYTES, caches=((1000.0, 10.0), (2000.0, 5.0)), fresh_bytes_per_second=0.5)
    found = [seconds(rates, lambda x: x + 1, f32(n)) for n in (250, 500, 1000)]
    assert found == [2 * 100, 2 * 400, 4000 + 8000]


def test_loops_without_products_are_one_kernel() -> None:
    def loop(step: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        return lambda x: lax.fori_loop(0, 50, lambda _, c: step(c), x)

    assert seconds(STARTS, loop(jnp.tanh), f32(4, 4)) == pytest.approx(1 + 50 * 0.1)
    assert seconds(STARTS, loop(lambda c: c @ c), f32(4, 4)) >= 50 * 110
    nested = loop(lambda c: lax.fori_loop(0, 9, lambda _, d: d * 0.5, c))
    assert seconds(STARTS, nested, f32(4)) == pytest.approx(1 + 50 * (0.1 + 9 * 0.1))
    vector = seconds(STARTS, lambda w, x: loop(lambda c: jnp.tanh(w @ c))(x), f32(4, 4), f32(4))
    assert vector < 10  # XLA writes products with vectors itself
    assert seconds(replace(STARTS, seconds_per_compiled_iteration=None), loop(jnp.tanh), f32(4)) > 500


def test_numbers_in_loops_cost_next_to_nothing_on_a_cpu() -> None:
    def walk(x: jax.Array) -> jax.Array:
        y: jax.Array = lax.fori_loop(0, 1000, lambda i, c: jnp.where(i % 2 == 0, c * 0.5, c + 1.0), x)
        return y

    assert seconds(CPU, walk, f32()) < 50e-6 < seconds(GPU, walk, f32())


def test_slow_kernels_of_a_cpu_are_priced_there_alone() -> None:
    x, w = f32(1, 32, 32, 64), f32(3, 3, 1, 64)

    def depthwise(x: jax.Array, w: jax.Array) -> jax.Array:
        form = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=form, feature_group_count=64)

    def shifts(x: jax.Array, w: jax.Array) -> jax.Array:
        wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        parts = [wide[:, i : i + 32, j : j + 32] * w[i, j, 0] for i in range(3) for j in range(3)]
        total: jax.Array = functools.reduce(jnp.add, parts)
        return total

    assert seconds(CPU, depthwise, x, w) > 5 * seconds(CPU, shifts, x, w)
    assert seconds(GPU, depthwise, x, w) < 2 * seconds(GPU, shifts, x, w)
    large = f32(1 << 20)
    assert seconds(CPU, lax.cummax, large) > 10 * seconds(CPU, lambda x: x + 1, large)
    assert seconds(CPU, lambda x: x**1.5, large) > 3 * seconds(CPU, lambda x: x * jnp.sqrt(x), large)


def only(graph: Graph, op: str) -> Any:
    (found,) = [node for node in graph.walk() if node.op == op]
    return found


def test_rounds_follow_from_what_is_known_of_the_bound() -> None:
    def count(bound: Callable[[jax.Array], jax.Array]) -> float:
        def fun(n: jax.Array, x: jax.Array) -> jax.Array:
            y: jax.Array = lax.fori_loop(0, bound(n), lambda _, c: c @ c, x)
            return y

        return rounds_of(only(trace(fun, jax.ShapeDtypeStruct((), jnp.int32), f32(4, 4)), "while"))

    assert count(lambda n: jnp.clip(n, 0, 8)) == 4
    assert count(lambda n: jnp.clip(n, 6, 8)) == 7
    assert count(lambda n: n) == UNKNOWN_ROUNDS
    newton = trace(lambda x: lax.while_loop(lambda c: jnp.sum(c) > 1, lambda c: c / 2, x), f32(4))
    assert rounds_of(only(newton, "while")) == UNKNOWN_ROUNDS


def test_numbers_are_ordinary_as_a_rule() -> None:
    def guarded(x: jax.Array) -> Any:
        return lax.cond(jnp.all(jnp.isfinite(x)), lambda x: x * 2, lambda x: x @ x, x)

    def either(p: jax.Array, x: jax.Array) -> Any:
        return lax.cond(p, lambda x: x * 2, lambda x: x @ x, x)

    plain = seconds(STARTS, lambda x: x * 2, f32(4, 4))
    assert seconds(STARTS, guarded, f32(4, 4)) < plain + 10
    assert shares(only(trace(either, jax.ShapeDtypeStruct((), bool), f32(4, 4)), "cond")) == [0.5, 0.5]


def test_dead_and_unknown_operations() -> None:
    assert seconds(STARTS, lambda x: (jnp.sort(x), x + 1)[1], f32(8)) == 1
    assert seconds(STARTS, lambda x: jax.pure_callback(lambda v: v, f32(3), x), f32(3)) == 100
    (n,) = jax.export.symbolic_shape("n")
    assert seconds(STARTS, lambda x: jnp.sort(x @ x.T).sum(), jax.ShapeDtypeStruct((n, 8), jnp.float32)) > 0


def test_reports_predict_whole_programs() -> None:
    f = lepton.optimize(lambda a, b, v: (a @ b) @ v)
    before, after = f.trace(f32(512, 512), f32(512, 512), f32(512)).predicted()
    assert after < before / 3
    same = lepton.optimize(lambda x: lax.fori_loop(0, 100, lambda i, c: c * 0.5 + i, x))
    before, after = same.trace(f32()).predicted()
    assert abs(before - after) < 1e-6
