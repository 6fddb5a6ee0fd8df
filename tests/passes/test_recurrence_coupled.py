"""Several numbers that are linear in one another: filters, oscillators, rotations, shifted states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import to_callable
from lepton_jax.rewrite import profit
from tests.passes._check import check, run
from tests.passes._loops import alike, around, normal, ops

FULL = around("counted,parallel,recurrence")
T = 32
X, Y = normal(T, 3), normal(T, 3, seed=1)
TAPS = jnp.asarray([0.5, -0.3, 0.2, 0.1])

Step = Callable[[Any, Any], tuple[Any, Any]]


def transposed_form(x: Any) -> Any:
    """A second-order filter, direct form II transposed."""

    def step(state: Any, xt: Any) -> Any:
        s, r = state
        y = 0.2 * xt + s
        return (0.3 * xt + 0.5 * y + r, 0.1 * xt - 0.2 * y), y

    return lax.scan(step, (jnp.ones(3), jnp.zeros(3)), x)


def direct_form(x: Any, a: Any) -> Any:
    """A second-order filter that remembers inputs and outputs."""

    def step(state: Any, xt: Any) -> Any:
        before, earlier, y, z = state
        new = xt + 0.3 * before + 0.1 * earlier - a[0] * y - a[1] * z
        return (xt, before, new, y), new

    zero = jnp.zeros(3)
    return lax.scan(step, (zero, zero, zero, zero), x, reverse=True)[1]


def rotation(x: Any, angle: Any) -> Any:
    """A pair of real numbers in place of a complex one."""

    def step(state: Any, parts: Any) -> Any:
        (p, q), (xt, t) = state, parts
        c, s = jnp.cos(t), jnp.sin(t)
        return (c * p - s * q + xt, s * p + c * q), p

    return lax.scan(step, (jnp.zeros(3), jnp.ones(3)), (x, angle))[1]


def shifted_outputs(x: Any, taps: Any) -> Any:
    """An autoregression over a batch, whose state is a row of outputs."""

    def step(h: Any, xt: Any) -> Any:
        y = xt + h @ taps
        return jnp.concatenate([y[:, None], h[:, :-1]], 1), y

    return lax.scan(step, jnp.zeros((3, 4)), x)[1]


def rolled_outputs(x: Any, taps: Any) -> Any:
    def step(h: Any, xt: Any) -> Any:
        y = xt + jnp.sum(taps * h)
        return jnp.roll(h, 1).at[0].set(y), y

    return lax.scan(step, jnp.zeros(4), x[:, 0])[1]


def constant_gain(z: Any) -> Any:
    """A filter that corrects a prediction by a part of what it missed."""
    a = jnp.asarray([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1], [0.0, 0.0, 0.9]])
    gain = jnp.asarray([[0.3, 0.0], [0.0, 0.2], [0.1, 0.0]])

    def step(h: Any, zt: Any) -> Any:
        h = a @ h
        h = h + gain @ (zt[:2] - h[:2])
        return h, h

    return lax.scan(step, jnp.zeros(3), z)[1]


def delta_rule(k: Any, v: Any) -> Any:
    """A state whose columns are mixed by one matrix."""

    def step(s: Any, parts: Any) -> Any:
        kt, vt = parts
        s = s + 0.3 * jnp.outer(kt, vt - kt @ s)
        return s, s[0]

    return lax.scan(step, jnp.zeros((3, 3)), (k * 0.5, v))[1]


def mirrored(x: Any) -> Any:
    return lax.scan(lambda h, xt: ((y := 0.5 * h[::-1] + 0.2 * jnp.sum(h) + xt), y), jnp.ones(3), x)[1]


PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "direct": (direct_form, (X[:8], TAPS[:2]), "coupled-recurrence"),
    "rotation": (rotation, (X[:8], Y[:8]), "coupled-recurrence"),
    "shifted": (shifted_outputs, (X[:8], TAPS), "matrix-recurrence"),
    "rolled": (rolled_outputs, (X[:8], TAPS), "matrix-recurrence"),
    "gain": (constant_gain, (X[:8],), "matrix-recurrence"),
    "delta": (delta_rule, (X[:8], Y[:8]), "matrix-recurrence"),
    "mirrored": (mirrored, (X[:8],), "matrix-recurrence"),
}


def test_solved_at_once_and_under_every_transformation() -> None:
    with profit.disregarded():
        graph, report = alike(transposed_form, X[:8], passes=FULL, every=True)
    assert report.rules["coupled-recurrence"] == 1
    loops = [op for op in ops(graph) if op in ("scan", "while", "cond")]
    assert loops == ["cond", "scan"]  # the loop itself, where the solution is not good enough


def test_every_program() -> None:
    def together(*arrays: Any) -> Any:
        given = iter(arrays)
        return [fun(*(next(given) for _ in args)) for fun, args, _ in PROGRAMS.values()]

    arrays = [array for _, args, _ in PROGRAMS.values() for array in args]
    with profit.disregarded():  # the loops are short, to compile soon
        graph, report = run(together, *arrays, passes=FULL, target="gpu")
    for rule in ("coupled-recurrence", "matrix-recurrence"):
        assert report.rules[rule] == sum(rule == wanted for _, _, wanted in PROGRAMS.values())
    assert [op for op in ops(graph) if op in ("scan", "while", "cond")] == ["cond", "scan"] * len(PROGRAMS)
    expected, found = jax.jit(lambda *given: (together(*given), to_callable(graph)(*given)))(*arrays)
    check(jax.tree.leaves(expected), found)


def test_gradient_of_a_filter_is_one_too() -> None:
    def loss(x: Any, a: Any) -> Any:
        return jax.grad(lambda x: jnp.sum(direct_form(x, a) ** 2))(x)

    _, report = run(loss, X, TAPS[:2], passes=FULL, target="gpu")
    assert report.rules["coupled-recurrence"] + report.rules.get("matrix-recurrence", 0) == 2


def poles(x: Any, near: Any) -> Any:
    """A filter with two poles close to 1, whose matrices cannot be multiplied accurately."""

    def step(state: Any, xt: Any) -> Any:
        y, z = state
        new = xt + 2 * jnp.cos(near) * y - z
        return (new, y), new

    return lax.scan(step, (0.0, 0.0), x)[1]


def test_digits_that_matrices_lose_are_won_back() -> None:
    x = normal(2048)
    graph, report = run(poles, x, jnp.float32(0), passes=FULL, target="gpu")
    assert report.rules["coupled-recurrence"] == 1
    fast, slow = jax.jit(to_callable(graph)), jax.jit(poles)
    for near in (1.0, 0.05, 0.001):
        angle = jnp.float32(near)
        h, exact, cosine = np.zeros(2), [], float(jnp.cos(angle))
        for xt in np.asarray(x, np.float64):
            h = np.array([xt + 2.0 * cosine * h[0] - h[1], h[0]])
            exact.append(h[0])
        wanted = np.asarray(exact)
        errors = [np.abs(np.asarray(f) - wanted).max() for f in (fast(x, angle)[0], slow(x, angle))]
        assert errors[0] <= 20 * errors[1] + 1e-5 * np.abs(wanted).max(), near


def test_steps_that_grow_and_numbers_that_are_not_finite() -> None:
    """Matrices overflow where the loop does not; NaN stays where it arises."""

    def f(a: Any, b: Any, x: Any) -> Any:
        def step(state: Any, parts: Any) -> Any:
            (p, q), (at, bt, xt) = state, parts
            return (at * (bt * q) + xt, at * (bt * p)), q

        return lax.scan(step, (jnp.zeros(3), jnp.zeros(3)), (a, b, x))

    large = jnp.full((T, 3), 1e30)
    zero = jnp.zeros((T, 3))
    graph, report = run(f, large, large, zero, passes=FULL, target="gpu")
    assert report.rules["coupled-recurrence"] == 1
    program = jax.jit(to_callable(graph))
    assert all(bool(jnp.all(y == 0)) for y in program(large, large, zero))
    small = jnp.full((T, 3), 0.5)
    bad = X.at[7, 1].set(jnp.nan).at[9, 2].set(jnp.inf)
    check(jax.jit(f)(small, small, bad), tuple_of(program(small, small, bad)))


def tuple_of(flat: list[Any]) -> Any:
    return (flat[0], flat[1]), flat[2]


def test_factors_whose_product_overflows() -> None:
    """What runs step by step is the loop as it was written, not one with factors multiplied out."""

    def f(a: Any, b: Any) -> Any:
        return lax.scan(lambda h, p: ((y := p[0] * (p[1] * h)), y), jnp.zeros(3), (a, b))[1]

    large = jnp.full((T, 3), 1e30)
    graph, report = run(f, large, large, passes=FULL, target="gpu")
    assert report.rules["linear-recurrence"] == 1
    assert bool(jnp.all(jax.jit(to_callable(graph))(large, large)[0] == 0))


def test_narrow_floats_keep_their_dtype() -> None:
    x = X.astype(jnp.bfloat16)

    def f(x: Any) -> Any:
        def step(state: Any, xt: Any) -> Any:
            p, q = state
            return (jnp.bfloat16(0.5) * q + xt, p - jnp.bfloat16(0.25) * q), p

        return lax.scan(step, (x[0], x[1]), x)[1]

    graph, report = run(f, x, passes=FULL, target="gpu")
    assert report.rules["coupled-recurrence"] == 1
    found, wanted = jax.jit(to_callable(graph))(x)[0], f(x.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    assert bool(jnp.allclose(found.astype(jnp.float32), wanted, atol=0.1, rtol=0.05))


def look_alikes() -> dict[str, Step]:
    def product(state: Any, xt: Any) -> Any:
        p, q = state
        return (p * q + xt, q - p), p

    def bent(state: Any, xt: Any) -> Any:
        p, q = state
        return (q + xt, jnp.tanh(p - q)), p

    def chosen(state: Any, xt: Any) -> Any:
        p, q = state
        return (jnp.where(p > 0, q, xt), p + q), p

    def divided(state: Any, xt: Any) -> Any:
        p, q = state
        return (q + xt, xt / (1 + p * p)), p

    def placed(state: Any, xt: Any) -> Any:
        p, q = state
        return (q + xt, p.at[jnp.argmax(q)].set(0.0)), p

    def rounded(state: Any, xt: Any) -> Any:
        p, q = state
        return (q + xt, (0.5 * p).astype(jnp.bfloat16).astype(jnp.float32)), p

    functions = product, bent, chosen, divided, placed, rounded
    return {step.__name__: step for step in functions}


@pytest.mark.parametrize("name", look_alikes())
def test_look_alikes_stay(name: str) -> None:
    def f(x: Any) -> Any:
        return lax.scan(look_alikes()[name], (jnp.ones(3), jnp.full(3, 0.1)), x)[1]

    graph, report = run(f, X, passes=FULL, target="gpu")
    assert not {"coupled-recurrence", "matrix-recurrence", "linear-recurrence"} & set(report.rules)
    assert "scan" in ops(graph)


def test_many_states_and_cpus_keep_the_loop() -> None:
    def wide(x: Any) -> Any:
        return lax.scan(lambda h, xt: ((y := 0.5 * h[::-1] + xt), y), jnp.zeros(129), x)[1]

    assert "scan" in ops(run(wide, normal(T, 129), passes=FULL, target="gpu")[0])
    graph, report = run(transposed_form, X, passes=FULL)
    assert "coupled-recurrence" not in report.rules and ops(graph).count("scan") == 1
