"""Carries that are kept, replaced, compared, bounded, or single bits; compiled for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import to_callable
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import profit
from tests.passes._check import all_kept, run
from tests.passes._loops import around, normal, ops

FULL = around("counted,projection,parallel,recurrence")
T = 6
X, Y = normal(T, 3), normal(T, 3, seed=1)
DONE = normal(T, 3, seed=2) > 0.5
ROUGH = X.at[2].set(-jnp.inf).at[4, 1:].set(jnp.nan).at[5, 0].set(jnp.inf)
BITS = (X[:, 0] * 1e6).astype(jnp.int32).astype(jnp.uint32)
ZERO, ONE = jnp.zeros(3), jnp.ones(3)


@pytest.fixture(autouse=True)
def short_loops_too() -> Iterator[None]:
    """Loops that are too short to pay are quicker to compile."""
    with profit.disregarded():
        yield


Program = tuple[Callable[..., Any], tuple[Any, ...]]


def over(step: Callable[..., Any], init: Any, *, reverse: bool = False) -> Callable[..., Any]:
    """A loop with a step of (carry, *rows)."""

    def f(*xs: Any) -> Any:
        def body(h: Any, rows: Any) -> tuple[Any, Any]:
            h = step(h, *rows)
            return h, h

        return lax.scan(body, init, xs, reverse=reverse)

    return f


def best_and_where(x: Any) -> Any:
    def step(carry: Any, parts: Any) -> Any:
        best, at = carry
        xt, t = parts
        better = xt > best
        carry = jnp.where(better, xt, best), jnp.where(better, t, at)
        return carry, carry

    return lax.scan(step, (jnp.full(3, -jnp.inf), jnp.zeros(3, int)), (x, jnp.arange(T)))


def best_in_a_loop(x: Any) -> Any:
    """Of a score, with what belongs to it."""

    def body(t: Any, carry: Any) -> Any:
        least, point, out = carry
        score = jnp.sum(x[t] ** 2)
        better = score < least
        least, point = lax.select(better, score, least), jnp.where(better, x[t], point)
        return least, point, out.at[t].set(least)

    return lax.fori_loop(0, T, body, (jnp.float32(jnp.inf), ZERO, jnp.zeros(T)))


def first_end(done: Any) -> Any:
    """Rewards after the end do not count."""

    def step(alive: Any, end: Any) -> Any:
        return alive & ~end, alive

    return lax.scan(step, jnp.ones(3, bool), done)[1]


def numbers(rough: Any) -> dict[str, tuple[Program, str]]:
    """Programs, and the rule that solves each; numbers may not be finite."""
    return {
        "where(x > h, x, h)": ((over(lambda h, x: jnp.where(x > h, x, h), ZERO), (rough,)), "best-so-far"),
        "where(h >= x, h, x)": (
            (over(lambda h, x: jnp.where(h >= x, h, x), ZERO, reverse=True), (rough,)),
            "best-so-far",
        ),
        "where(h > f(x), f(x), h)": (
            (over(lambda h, x: jnp.where(h > jnp.abs(x), jnp.abs(x), h), 9 * ONE), (rough,)),
            "best-so-far",
        ),
        "best and where": ((best_and_where, (rough,)), "best-so-far"),
        "held": ((over(lambda h, x, d: jnp.where(d, x, h), ZERO), (rough, DONE)), "held-carry"),
        "sum from a reset": (
            (over(lambda h, x, d: jnp.where(d, x, h + x), ZERO), (rough, DONE)),
            "linear-recurrence",
        ),
        "return from a reset": (
            (over(lambda h, x, d: jnp.where(d, 0, 0.9 * h) + x, ONE, reverse=True), (rough, DONE)),
            "linear-recurrence",
        ),
        "two resets": (
            (over(lambda h, x, d: jnp.where(d, 1.0, jnp.where(x > 1, h, 0.5 * h - x)), ONE), (rough, DONE)),
            "linear-recurrence",
        ),
        "extreme from a reset": (
            (over(lambda h, x, d: jnp.where(d, x, jnp.maximum(h - 0.1, x)), ONE), (rough, DONE)),
            "clamped-recurrence",
        ),
        "decaying peak": ((over(lambda h, x: jnp.maximum(0.9 * h, x), ONE), (rough,)), "clamped-recurrence"),
        "decaying peak from a reset": (
            (over(lambda h, x, d: jnp.where(d, -jnp.inf, jnp.maximum(h / 1.1, x)), ONE), (rough, DONE)),
            "clamped-recurrence",
        ),
        "gate with bounds": (
            (
                over(lambda h, x: jnp.clip(jax.nn.sigmoid(x) * h + x, -1.0, 1.0) - 0.1, ONE, reverse=True),
                (rough,),
            ),
            "clamped-recurrence",
        ),
    }


LOGIC: dict[str, Program] = {
    "and": (first_end, (DONE,)),
    "or": (over(lambda h, d: jnp.logical_or(h, d), jnp.zeros(3, bool)), (DONE,)),
    "hysteresis": (over(lambda h, x: jnp.where(h, x > -0.5, x > 0.5), jnp.ones(3, bool)), (X,)),
    "threshold": (over(lambda h, x: (x + 0.7 * h) > 0.2, jnp.ones(3, bool), reverse=True), (X,)),
    "bits": (over(lambda h, z: ((h | z) & ~(z << 2)) ^ z, jnp.uint32(5)), (BITS,)),
    "chosen": (over(lambda h, z: jnp.where(z > 1 << 30, z & h, ~h), jnp.uint32(5)), (BITS,)),
}


def assert_solved(graph: Graph, name: str) -> None:
    assert not {"scan", "while", "cond"} & {*ops(graph)}, name


SMOOTH = (
    "where(h >= x, h, x)",
    "best and where",
    "held",
    "return from a reset",
    "extreme from a reset",
    "decaying peak from a reset",
)


def test_gradients() -> None:
    programs = {name: numbers(X)[name][0] for name in SMOOTH}
    for name, (graph, _) in all_kept(programs, passes=FULL, target="gpu", vmap=False, export=False).items():
        assert_solved(graph, name)


def test_infinities_and_nan() -> None:
    """A reset forgets them, a comparison passes NaN over; otherwise they stay, as in the loop."""
    rules = {name: rule for name, (_, rule) in numbers(ROUGH).items()}
    programs = {name: program for name, (program, _) in numbers(ROUGH).items()}
    known = jnp.where(DONE, ROUGH, jnp.nan)
    programs["last that is a number"] = over(lambda h, x: jnp.where(jnp.isnan(x), h, x), ZERO), (known,)
    for name, (graph, report) in all_kept(
        programs, passes=FULL, target="gpu", grad=False, vmap=False, export=False
    ).items():
        assert_solved(graph, name)
        assert report.rules[rules.get(name, "held-carry")] == 1, name


def test_best_so_far_in_a_counted_loop() -> None:
    [(graph, report)] = all_kept({"best": (best_in_a_loop, (X,))}, passes=FULL, target="gpu").values()
    assert_solved(graph, "best")
    assert (report.rules["best-so-far"], report.rules["held-carry"]) == (1, 1)


def test_logic() -> None:
    for name, (graph, report) in all_kept(LOGIC, passes=FULL, target="gpu").items():
        assert_solved(graph, name)
        assert report.rules["bit-recurrence"] == 1, name


def test_growth_between_resets_keeps_its_gradient() -> None:
    """Products of factors overflow where they are not finite: the loop runs, in both directions."""
    f = over(lambda h, x, d: jnp.where(d, 0.0, x * h) + 1, ONE)
    args = X * 1e4, DONE
    [(graph, _)] = all_kept({"f": (f, args)}, passes=FULL, target="gpu", export=False).values()
    assert ops(graph).count("cond") == 1


def test_narrow_and_whole_numbers() -> None:
    def kept_and_best(x: Any, done: Any) -> Any:
        held = over(lambda h, x, d: jnp.where(d, x, h), x[0])(x, done)
        return held, over(lambda h, x: jnp.where(x > h, x, h), x[0])(x)

    programs = {}
    for dtype in (jnp.bfloat16, jnp.int32):
        x = (10 * X).astype(dtype)
        graph, report = run(kept_and_best, x, DONE, passes=FULL, target="gpu")
        assert (report.rules["held-carry"], report.rules["best-so-far"]) == (1, 1), dtype
        programs[str(x.dtype)] = (to_callable(graph), x)

    def both(xs: dict[str, Any]) -> Any:
        return {
            name: (fun(xs[name], DONE), jax.tree.leaves(kept_and_best(xs[name], DONE)))
            for name, (fun, _) in programs.items()
        }

    for name, pair in jax.jit(both)({name: x for name, (_, x) in programs.items()}).items():
        for found, expected in zip(*pair, strict=True):
            assert found.dtype == expected.dtype, name
            np.testing.assert_array_equal(np.asarray(found, float), np.asarray(expected, float), name)


LOOK_ALIKES: dict[str, Callable[..., Any]] = {
    "another value is taken": over(lambda h, x: jnp.where(x > h, x + 1, h), ZERO),
    "another number is compared": over(lambda h, x: jnp.where(x > 2 * h, x, h), ZERO),
    "a factor may be negative": over(lambda h, x: jnp.maximum(x * h, 1.0), ZERO),
    "a factor may be above one": over(lambda h, x: jnp.maximum(1.5 * h, x), ZERO),
    "the choice looks at the carry": over(lambda h, x: jnp.where(h > 0, x, h - 1), ZERO),
    "bits move": over(lambda h, x: (h << 1) ^ (x > 0).astype(jnp.uint32), jnp.zeros(3, jnp.uint32)),
    "bits of other places": over(lambda h, x: jnp.roll(h, 1) & (x > 0), jnp.ones(3, bool)),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alikes_stay(name: str) -> None:
    graph, _ = run(LOOK_ALIKES[name], X, passes=FULL, target="gpu")
    assert "scan" in ops(graph)
