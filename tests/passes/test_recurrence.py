"""Recurrences that compose, as people write them; compiled for a GPU, computed wherever the test runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import to_callable
from tests.passes._check import run
from tests.passes._loops import alike, around, average, normal, ops

PASS = "recurrence"
FULL = around("counted,projection,parallel,recurrence")
T = 32
X, Y = normal(T, 3), normal(T, 3, seed=1)
DONE = normal(T, 3, seed=2) > 1


def solved(fun: Any, *args: Any, fallback: bool = False, **options: Any) -> dict[str, int]:
    """The rules that fired on a program whose loops must be gone but for a fallback."""
    graph, report = alike(fun, *args, passes=FULL, **options)
    assert [op for op in ops(graph) if op in ("scan", "while", "cond")] == ["cond", "scan"] * fallback
    return report.rules


@pytest.mark.parametrize("reverse", [False, True])
def test_discounted_returns(reverse: bool) -> None:
    def f(r: Any) -> Any:
        def step(after: Any, rt: Any) -> tuple[Any, Any]:
            total = rt + 0.99 * after
            return total, total

        return lax.scan(step, jnp.zeros(3), r, reverse=reverse)[1]

    assert solved(f, X, every=reverse)["linear-recurrence"] == 1


def test_moving_average() -> None:
    assert solved(lambda x: average(x, 0.3), X, grad=False)["linear-recurrence"] == 1


def test_moving_average_of_unknown_rate() -> None:
    assert solved(average, X, jnp.float32(0.3), fallback=True, every=True)["linear-recurrence"] == 1


def test_generalised_advantages() -> None:
    def f(r: Any, v: Any, done: Any) -> Any:
        def step(carry: Any, parts: Any) -> Any:
            advantage, after = carry
            rt, vt, end = parts
            going = 1.0 - end
            delta = rt + 0.99 * after * going - vt
            advantage = delta + 0.99 * 0.95 * going * advantage
            return (advantage, vt), (advantage, advantage + vt)

        return lax.scan(step, (jnp.zeros(3), jnp.zeros(3)), (r, v, done), reverse=True)[1]

    rules = solved(f, X, Y, DONE)
    assert rules["shifted-carry"] == rules["linear-recurrence"] == 1


def test_resets_by_choice() -> None:
    def f(x: Any, done: Any) -> Any:
        def step(total: Any, parts: Any) -> tuple[Any, Any]:
            xt, end = parts
            total = jnp.where(end, 0.0, 0.9 * total) + xt
            return total, total

        return lax.scan(step, jnp.ones(3), (x, done))

    assert solved(f, X, DONE)["linear-recurrence"] == 1


def test_selective_state_space_and_its_gradient() -> None:
    def f(x: Any, a: Any, b: Any, c: Any) -> Any:
        def step(h: Any, parts: Any) -> tuple[Any, Any]:
            xt, bt, ct = parts
            h = jnp.exp(-jnp.exp(a) * jax.nn.sigmoid(xt)[:, None]) * h + xt[:, None] * bt
            return h, h @ ct

        return lax.scan(step, jnp.zeros((3, 4)), (x, b, c))[1]

    args = X, normal(3, 4), normal(T, 4, seed=5), normal(T, 4, seed=6)
    assert solved(f, *args, grad=False)["linear-recurrence"] == 1

    def loss(*args: Any) -> Any:
        return jax.grad(lambda *a: jnp.sum(f(*a) ** 2), (0, 1, 2, 3))(*args)

    graph, report = alike(loss, *args, passes=FULL, grad=False)
    assert report.rules["linear-recurrence"] == 2
    assert ops(graph).count("scan") == ops(graph).count("cond")


def test_checkpointed_steps() -> None:
    def f(x: Any, a: Any, step: Any) -> Any:
        return lax.scan(jax.checkpoint(step), jnp.zeros(3), (x, a))[1]

    def linear(h: Any, parts: Any) -> tuple[Any, Any]:
        h = jnp.exp(-jnp.exp(parts[1])) * h + parts[0]
        return h, jnp.sin(h)

    def bend(h: Any, parts: Any) -> tuple[Any, Any]:
        return jnp.tanh(h) * parts[1] + parts[0], h

    assert solved(lambda x, a: f(x, a, linear), X, Y)["checkpointed-step"] == 1
    graph, report = run(lambda x, a: f(x, a, bend), X, Y, passes=FULL, target="gpu")
    assert "checkpointed-step" not in report.rules
    assert {"checkpoint", "remat2"} & set(ops(graph))


def test_complex_diagonal_state_space() -> None:
    def f(rate: Any, frequency: Any, b: Any, u: Any) -> Any:
        decay = jnp.exp(-jnp.exp(rate) + 1j * frequency)

        def step(h: Any, ut: Any) -> tuple[Any, Any]:
            h = decay * h + b * ut
            return h, jnp.sum(h.real)

        return lax.scan(step, jnp.zeros(4, jnp.complex64), u)[1]

    rules = solved(f, normal(4), normal(4, seed=1), normal(4, seed=2), normal(T), fallback=True)
    assert rules["linear-recurrence"] == 1


@pytest.mark.parametrize("rows", [(), (2,)])
def test_linear_recurrent_layer(rows: tuple[int, ...]) -> None:
    def f(m: Any, w: Any, x: Any) -> Any:
        def step(h: Any, xt: Any) -> tuple[Any, Any]:
            h = h @ m + xt @ w - 0.5 * h
            return h, h

        return lax.scan(step, jnp.ones((*rows, 5)), x)[1]

    rules = solved(f, normal(5, 5) * 0.2, normal(3, 5), normal(T, *rows, 3), fallback=True, grad=not rows)
    assert rules["matrix-recurrence"] == 1


def test_matrix_times_state() -> None:
    def f(m: Any, x: Any) -> Any:
        def step(h: Any, parts: Any) -> tuple[Any, Any]:
            mt, xt = parts
            h = mt @ h * jax.nn.sigmoid(xt) + xt
            return h, h

        return lax.scan(step, jnp.zeros(3), (m, x), reverse=True)[1]

    assert solved(f, normal(T, 3, 3) * 0.3, X, fallback=True)["matrix-recurrence"] == 1


def test_the_loop_for_where_it_fails_stays_although_all_is_known_to_be_finite() -> None:
    def f() -> Any:
        m = np.sin(np.arange(4, dtype=np.float32)).reshape(2, 2) / 2
        return lax.scan(lambda c, x: (c @ m + x, c), jnp.zeros(2), jnp.ones((T, 2)), reverse=True)[0]

    graph, report = run(f, passes="default", target="gpu")
    assert report.rules["matrix-recurrence"] == 1
    assert [op for op in ops(graph) if op in ("scan", "cond")] == ["cond", "scan"]


def test_several_recurrences_one_on_another() -> None:
    def f(g: Any) -> Any:
        def step(state: Any, gt: Any) -> Any:
            count, m, v, p = state
            count = count + 1
            m = 0.9 * m + 0.1 * gt
            v = 0.99 * v + 0.01 * gt * gt
            p = p - 0.1 * (m / (1 - 0.9**count)) / (jnp.sqrt(v) + 1e-3)
            return (count, m, v, p), p

        zero = jnp.zeros(3)
        return lax.scan(step, (0, zero, zero, zero), g)[1]

    rules = solved(f, X, grad=False)
    assert (rules["counted-iterations"], rules["linear-recurrence"]) == (1, 3)


def test_running_sums_and_extremes() -> None:
    def f(x: Any, y: Any) -> Any:
        def step(state: Any, parts: Any) -> Any:
            total, most, least = state
            xt, yt = parts
            state = total + xt * yt, jnp.maximum(most, xt), jnp.minimum(yt, least)
            return state, state

        return lax.scan(step, (jnp.ones(3), jnp.full(3, -jnp.inf), jnp.full(3, jnp.inf)), (x, y))

    rules = solved(f, X, Y)
    assert (rules["linear-recurrence"], rules["clamped-recurrence"]) == (1, 2)


def test_clamped_sums() -> None:
    def f(x: Any, y: Any) -> Any:
        def step(level: Any, parts: Any) -> Any:
            xt, yt = parts
            level = jnp.clip(level + xt, -1.0, 1.0)
            level = jnp.maximum(level - 0.1, jnp.minimum(yt, 0.5))
            return level, level

        return lax.scan(step, jnp.zeros(3), (x, y), reverse=True)

    assert solved(f, X, Y)["clamped-recurrence"] == 1


def test_forbidden_steps_of_a_path() -> None:
    def f(x: Any, done: Any) -> Any:
        def step(best: Any, parts: Any) -> Any:
            xt, closed = parts
            best = jnp.maximum(best + jnp.where(closed, -jnp.inf, xt), xt)
            return best, best

        return lax.scan(step, jnp.zeros(3), (x, done))[1]

    assert solved(f, X, DONE)["clamped-recurrence"] == 1


def test_gradients_of_bounds_know_which_operand_was_taken() -> None:
    def step(levels: Any, xt: Any) -> Any:
        level, best = levels
        return (jnp.clip(level + xt, -1.0, 1.0), jnp.maximum(best + xt, xt)), levels

    def slopes(x: Any) -> Any:
        weights = jnp.cos(jnp.arange(x.size)).reshape(x.shape)
        start = jnp.zeros(3), jnp.zeros(3)
        return jax.grad(lambda x: sum((y * weights).sum() for y in lax.scan(step, start, x)[1]))(x)

    assert alike(slopes, X, passes=FULL, grad=False)[1].rules["clamped-recurrence"] == 2


def test_whole_numbers_wrap_around() -> None:
    def f(seed: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            state = state * jnp.uint32(1664525) + jnp.uint32(1013904223)
            return state, state >> 16

        return lax.scan(step, seed, None, length=T)

    assert solved(f, jnp.uint32(7))["linear-recurrence"] == 1


def test_growth_that_overflows_on_the_way_falls_back() -> None:
    """Products of factors are infinite, the sequence stays finite: the loop must run."""

    def f(a: Any, b: Any) -> Any:
        def step(h: Any, parts: Any) -> tuple[Any, Any]:
            h = parts[0] * h + parts[1]
            return h, h

        return lax.scan(step, jnp.zeros(3), (a, b))[1]

    a = jnp.full((T, 3), 1e30)
    b = jnp.zeros((T, 3))
    graph, report = alike(f, a, b, passes=FULL, grad=False)
    assert report.rules["linear-recurrence"] == 1
    assert bool(jnp.all(jax.jit(to_callable(graph))(a, b)[0] == 0))


def test_nan_reaches_what_comes_after() -> None:
    x = X.at[11, 1].set(jnp.nan)
    alike(lambda x: average(x, 0.3)[1], x, passes=FULL, grad=False)


def test_narrow_floats() -> None:
    def f(x: Any) -> Any:
        def step(h: Any, xt: Any) -> tuple[Any, Any]:
            h = jnp.asarray(0.5, x.dtype) * h + xt
            return h, h

        return lax.scan(step, jnp.zeros(3, x.dtype), x)[1]

    arrays = {name: X.astype(name) for name in ("bfloat16", "float16")}
    rewritten = {}
    for name, x in arrays.items():
        graph, report = run(f, x, passes=FULL, target="gpu")
        assert report.rules["linear-recurrence"] == 1, name
        rewritten[name] = to_callable(graph)
    both = jax.jit(lambda arrays: {name: (f(x), rewritten[name](x)[0]) for name, x in arrays.items()})
    for name, (expected, found) in both(arrays).items():
        rounding = 8 * float(jnp.finfo(name).eps)
        assert found.dtype == name
        numbers = np.asarray(found, float), np.asarray(expected, float)
        np.testing.assert_allclose(*numbers, atol=rounding, rtol=rounding, err_msg=name)
