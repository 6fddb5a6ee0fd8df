"""Loops that only look like recurrences, that do not pay, or that are unrolled instead."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests.passes._check import run, same
from tests.passes._loops import CLEAN, alike, around, average, normal, ops

PASS = "recurrence"
FULL = around("counted,projection,parallel,recurrence")
T = 32
X, Y = normal(T, 3), normal(T, 3, seed=1)


def test_left_to_the_loop_on_a_cpu() -> None:
    graph = same(lambda x: average(x, 0.3), X, passes=FULL)
    assert "scan" in ops(graph)
    _, report = run(lambda x: average(x, 0.3), X, passes=f"inline,{PASS}")
    assert "linear-recurrence" not in report.rules


def look_alikes() -> dict[str, Any]:
    def squared(h: Any, xt: Any) -> Any:
        return h * h + xt

    def choice_by_state(h: Any, xt: Any) -> Any:
        return jnp.where(h > 0, 0.5 * h, h + xt)

    def rounded(h: Any, xt: Any) -> Any:
        return (0.9 * h).astype(jnp.bfloat16).astype(jnp.float32) + xt

    def divided(h: Any, xt: Any) -> Any:
        return xt / (1 + h * h)

    def bent(h: Any, xt: Any) -> Any:
        return jnp.tanh(0.9 * h + xt)

    functions = squared, choice_by_state, rounded, divided, bent
    return {step.__name__: step for step in functions}


@pytest.mark.parametrize("name", look_alikes())
def test_look_alikes_stay(name: str) -> None:
    step = look_alikes()[name]

    def f(x: Any) -> Any:
        return lax.scan(lambda h, xt: ((y := step(h, xt)), y), jnp.full(3, 0.1), x)[1]

    graph, report = run(f, X, passes=FULL, target="gpu")
    assert not {"linear-recurrence", "clamped-recurrence", "matrix-recurrence"} & set(report.rules)
    assert "scan" in ops(graph)


def test_carries_that_need_each_other_stay() -> None:
    def f(x: Any) -> Any:
        def step(state: Any, xt: Any) -> Any:
            p, q = state
            return (p * q + xt, q - p), p

        return lax.scan(step, (jnp.zeros(3), jnp.ones(3)), x)[1]

    graph, _ = run(f, X, passes=FULL, target="gpu")
    assert "scan" in ops(graph)


def bent(x: Any) -> Any:
    def step(h: Any, xt: Any) -> tuple[Any, Any]:
        h = jnp.sin(h) * 0.9 + xt
        return h, h

    return lax.scan(step, jnp.zeros(x.shape[1:]), x)[1]


def test_small_loops_that_stay_are_unrolled_on_a_gpu() -> None:
    graph, report = alike(bent, normal(67, 3), passes=FULL)
    (loop,) = [node for node in graph if node.op == "scan"]
    assert loop.params["unroll"] == 8
    assert report.rules["unrolled-loop"] == 1


def test_large_loops_and_those_on_a_cpu_are_not_unrolled() -> None:
    def with_product(x: Any, u: Any) -> Any:
        return lax.scan(lambda h, xt: (jnp.tanh(h @ u + xt), None), jnp.zeros(3), x)[0]

    for target, fun, args in (
        ("cpu", bent, (normal(67, 3),)),
        ("gpu", bent, (X,)),
        ("gpu", bent, (jax.ShapeDtypeStruct((64, 1 << 16), jnp.float32),)),
        ("gpu", with_product, (normal(67, 3), normal(3, 3))),
    ):
        assert "unrolled-loop" not in run(fun, *args, passes=f"inline,{PASS}", target=target)[1].rules


def test_sums_over_paths_only_where_they_pay() -> None:
    """Many states, many sequences, TPUs and CPUs keep the loop; single states go to TPUs too."""

    def forward(x: Any, a: Any) -> Any:
        def step(h: Any, e: Any) -> Any:
            return jax.nn.logsumexp(h[..., None] + a, axis=-2) + e, None

        return lax.scan(step, jnp.zeros(x.shape[1:]), x)[0]

    def alone(x: Any, a: Any) -> Any:
        return lax.scan(lambda h, e: (jnp.logaddexp(h, e), None), jnp.zeros(x.shape[1:]), x)[0]

    def solved(fun: Any, shape: tuple[int, ...], target: str) -> bool:
        x, a = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, (shape[-1],) * 2))
        return "log-sum-recurrence" in run(fun, x, a, passes=FULL, target=target)[1].rules

    assert solved(forward, (4096, 4, 8), "gpu")
    assert solved(alone, (4096, 64), "tpu")
    for fun, shape, target in (
        (forward, (4096, 8), "tpu"),
        (forward, (4096, 8), "cpu"),
        (alone, (4096, 8), "cpu"),
        (forward, (16, 8), "gpu"),
        (forward, (4096, 1024, 8), "gpu"),
        (forward, (4096, 33), "gpu"),
    ):
        assert not solved(fun, shape, target), (fun.__name__, shape, target)


def test_short_loops_stay() -> None:
    graph, _ = run(lambda x: average(x, 0.3), X[:8], passes=f"{CLEAN},{PASS}", target="gpu")
    assert "scan" in ops(graph)
