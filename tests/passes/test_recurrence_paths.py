"""Best paths and sums over paths, in logarithms, as people write them; compiled for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import to_callable
from lepton_jax.rewrite import profit
from tests.passes._check import all_kept, run
from tests.passes._loops import alike, around, normal, ops

FULL = around("counted,projection,parallel,recurrence")
T = 6
X, Y = normal(T, 3), normal(T, 3, seed=1)
A, B = normal(3, 3), normal(T, 2, 3, seed=3)
CLOSED = jnp.eye(3, k=1) > 0
"""Transitions that are impossible."""

Program = tuple[Callable[..., Any], tuple[Any, ...]]


@pytest.fixture(autouse=True)
def short_loops_too() -> Iterator[None]:
    """Loops that are too short to pay are quicker to compile."""
    with profit.disregarded():
        yield


def over(step: Callable[..., Any], init: Any, *, reverse: bool = False) -> Callable[..., Any]:
    """A loop with a step of (carry, *rows)."""

    def f(*xs: Any) -> Any:
        def body(h: Any, rows: Any) -> tuple[Any, Any]:
            h = step(h, *rows)
            return h, h

        return lax.scan(body, init, xs, reverse=reverse)[1]

    return f


def masked(a: Any) -> Any:
    return jnp.where(CLOSED, -jnp.inf, a)


def forward_algorithm(x: Any, a: Any) -> Any:
    def step(h: Any, e: Any) -> Any:
        h = jax.nn.logsumexp(h[:, None] + masked(a), axis=0) + e
        return h, h

    return lax.scan(step, jnp.zeros(3), x)


def forward_by_hand(x: Any, a: Any) -> Any:
    def body(t: Any, h: Any) -> Any:
        z = h[:, None] + a
        most = z.max(0)
        return most + jnp.log(jnp.exp(z - most).sum(0)) + x[t]

    return lax.fori_loop(0, T, body, jnp.zeros(3))


def backward_algorithm(x: Any, a: Any) -> Any:
    """Of a batch, with the sum along the last axis."""

    def step(h: Any, e: Any) -> Any:
        z = a + (h + e)[:, None, :]
        most = jnp.max(z, -1, keepdims=True)
        return jnp.squeeze(most + jnp.log(jnp.sum(jnp.exp(z - most), -1, keepdims=True)), -1), h

    return lax.scan(step, jnp.zeros((2, 3)), x, reverse=True)


def best_path(x: Any, a: Any) -> Any:
    def forward(h: Any, e: Any) -> Any:
        z = h[:, None] + masked(a)
        return z.max(0) + e, z.argmax(0)

    last, back = lax.scan(forward, x[0], x[1:])
    state, path = lax.scan(lambda s, b: (b[s], s), last.argmax(), back, reverse=True)
    return last, path, state


def ctc(x: Any) -> Any:
    """Log-probability of labels with blanks in between, at every time."""
    size = x.shape[1]
    start = jnp.full(size, -jnp.inf).at[0].set(0.0)

    def step(alpha: Any, emit: Any) -> Any:
        by_one = jnp.concatenate([jnp.full(1, -jnp.inf), alpha[:-1]])
        by_two = jnp.concatenate([jnp.full(2, -jnp.inf), alpha[:-2]])
        by_two = jnp.where(jnp.arange(size) % 2 == 1, by_two, -jnp.inf)
        alpha = jnp.logaddexp(jnp.logaddexp(alpha, by_one), by_two) + emit
        return alpha, alpha

    return lax.scan(step, start, x)[1]


def gaps(x: Any) -> Any:
    """Affine costs of gaps: three scores that need one another."""

    def step(state: Any, s: Any) -> Any:
        match, opened, start = state
        new = jnp.minimum(match, jnp.minimum(opened, start)) + s
        return (new, jnp.minimum(match + 2.0, opened + 0.5), start + 0.25), new

    return lax.scan(step, (jnp.zeros(3), jnp.ones(3), jnp.zeros(3)), x)[1]


def shifted_scores(x: Any) -> Any:
    """A row of an edit distance: each place from itself and the one before, or anew."""

    def step(row: Any, s: Any) -> Any:
        moved = jnp.pad(row[1:], (0, 1), constant_values=-jnp.inf)
        row = jnp.maximum(jnp.stack([row - 1.0, moved, s]).max(0), row.max() - 3.0)
        return row, row

    return lax.scan(step, jnp.zeros(3), x)[1]


def from_a_reset(x: Any, done: Any) -> Any:
    return over(lambda h, x, d: jnp.where(d, x, jnp.logaddexp(h, x)), jnp.zeros(3))(x, done)


PROGRAMS: dict[str, Program] = {
    "logaddexp": (over(lambda h, a, b: jnp.logaddexp(h + a, b), jnp.full(3, -jnp.inf)), (X, Y)),
    "logsumexp of two": (
        over(lambda h, a: jax.nn.logsumexp(jnp.stack([a, h - 0.1]), axis=0), jnp.zeros(3), reverse=True),
        (X,),
    ),
    "log1p": (
        over(lambda h, a: jnp.maximum(h, a) + jnp.log1p(jnp.exp(-jnp.abs(a - h))), jnp.zeros(3)),
        (X,),
    ),
    "two exponentials": (
        over(lambda h, a: (m := jnp.maximum(h, a)) + jnp.log(jnp.exp(h - m) + jnp.exp(a - m)), jnp.zeros(3)),
        (X,),
    ),
    "forward algorithm": (forward_algorithm, (X, A)),
    "forward algorithm by hand": (forward_by_hand, (X, A)),
    "backward algorithm of a batch": (backward_algorithm, (B, A)),
    "forward algorithm of each": (jax.vmap(forward_algorithm, (1, None)), (B, A)),
    "edit distance": (shifted_scores, (X,)),
    "gaps": (gaps, (X,)),
    "from a reset": (from_a_reset, (X, Y > 1)),
}


def rule_of(name: str) -> str:
    return "best-path-recurrence" if name in ("edit distance", "gaps") else "log-sum-recurrence"


SMOOTH = ("forward algorithm", "gaps")
"""Programs that are differentiated, batched and exported too."""


def test_values() -> None:
    programs = {name: program for name, program in PROGRAMS.items() if name not in SMOOTH}
    programs["labels"] = ctc, (normal(T, 5),)
    for name, (graph, report) in all_kept(
        programs, passes=FULL, target="gpu", grad=False, vmap=False, export=False
    ).items():
        assert "scan" not in ops(graph), name
        assert report.rules[rule_of(name)] == 1, name


def test_gradients_batches_and_export() -> None:
    for name, (graph, report) in all_kept(
        {name: PROGRAMS[name] for name in SMOOTH}, passes=FULL, target="gpu"
    ).items():
        assert "scan" not in ops(graph), name
        assert report.rules[rule_of(name)] == 1, name


def test_best_path_is_found_in_parallel() -> None:
    """Scores and where they come from at once; only the way back goes step by step."""
    [(graph, report)] = all_kept({"f": (best_path, (X, A))}, passes=FULL, target="gpu", grad=False).values()
    assert report.rules["best-path-recurrence"] == 1
    assert [node.params["reverse"] for node in graph.walk() if node.op == "scan"] == [True]


def test_gradient_loops_are_solved_too() -> None:
    """The program holds the gradient: forward as sums over paths, backward as a linear recurrence."""

    def f(x: Any, a: Any) -> Any:
        return jax.grad(lambda *args: forward_by_hand(*args).sum(), (0, 1))(x, a)

    [(_, report)] = all_kept(
        {"f": (f, (X, A))}, passes=FULL, target="gpu", grad=False, vmap=False, export=False
    ).values()
    assert (report.rules["log-sum-recurrence"], report.rules["matrix-recurrence"]) == (1, 1)


def test_what_cannot_be_reached() -> None:
    """Infinities stay, NaN does not vanish, and gradients are finite, where those of the loop are not."""
    graph, _ = run(ctc, normal(T, 5), passes=FULL, target="gpu")
    fast = to_callable(graph)
    x = normal(T, 5).at[3, 2].set(-jnp.inf)
    rows = jnp.stack([x, x.at[4, 1].set(jnp.nan), jnp.full_like(x, -jnp.inf)])

    def total(x: Any) -> Any:
        return jnp.logaddexp(*fast(x)[0][-1, -2:])

    def both(rows: Any) -> Any:
        return jax.vmap(lambda x: fast(x)[0])(rows), lax.map(ctc, rows), jax.grad(total)(x)

    found, expected, slope = jax.tree.map(np.asarray, jax.jit(both)(rows))
    np.testing.assert_allclose(found[::2], expected[::2], rtol=1e-5, atol=1e-5)
    assert np.isnan(found[1][np.isnan(expected[1])]).all() and not np.isnan(found[1][:4]).any()
    assert np.isfinite(slope).all() and slope[3, 2] == 0
    np.testing.assert_allclose(np.sum(slope, 1), 1, rtol=1e-5)


def test_narrow_floats() -> None:
    def f(a: Any, b: Any) -> Any:
        return over(lambda h, a, b: jnp.logaddexp(h + a, b), jnp.zeros(3, a.dtype))(a, b)

    for dtype in (jnp.bfloat16, jnp.float16):
        narrow = [jnp.asarray(np.asarray(x).astype(dtype)) for x in (X, Y)]
        graph, report = run(f, *narrow, passes=FULL, target="gpu")
        assert report.rules["log-sum-recurrence"] == 1
        wide = [np.asarray(x, np.float32) for x in narrow]
        (found,), expected = jax.jit(lambda graph=graph, x=narrow, y=wide: (to_callable(graph)(*x), f(*y)))()
        assert found.dtype == dtype
        np.testing.assert_allclose(np.asarray(found, float), expected, atol=8 * float(jnp.finfo(dtype).eps))


def chosen(h: Any, x: Any, otherwise: Any) -> Any:
    """What `jnp.logaddexp` is in a gradient, where `otherwise` is h + x."""
    difference = h - x
    total = jnp.maximum(h, x) + jnp.log1p(jnp.exp(-jnp.abs(difference)))
    return jnp.where(difference != difference, otherwise, total)


def test_sums_of_two_with_a_choice_for_nan() -> None:
    _, report = alike(over(lambda h, x: chosen(h, x, h + x), jnp.zeros(3)), X, passes=FULL)
    assert report.rules["log-sum-recurrence"] == 1


LOOK_ALIKES: dict[str, Callable[..., Any]] = {
    "a factor": over(lambda h, x: jnp.logaddexp(2 * h, x), jnp.zeros(3)),
    "the other sign": over(lambda h, x: jnp.logaddexp(x - h, x), jnp.zeros(3)),
    "two of them added": over(lambda h, x: jnp.logaddexp(h, x) + h, jnp.zeros(3)),
    "maximum and logarithm": over(lambda h, x: jnp.maximum(jnp.logaddexp(h, x), h - h.max()), jnp.zeros(3)),
    "maximum and minimum": over(lambda h, x: jnp.maximum(h, jnp.minimum(h[::-1], x)), jnp.zeros(3)),
    "another normaliser than is subtracted": over(
        lambda h, x: (m := (z := h[:, None] + A).max(0)) + jnp.log(jnp.exp(z - m).sum(1)), jnp.zeros(3)
    ),
    "another number is added": over(
        lambda h, x: x + jnp.log(jnp.exp(h - h.max()) + jnp.exp(x - h.max())), jnp.zeros(3)
    ),
    "another choice": over(lambda h, x: chosen(h, x, h - x), jnp.zeros(3)),
    "rounded": over(lambda h, x: jnp.logaddexp(h.astype(jnp.bfloat16).astype(jnp.float32), x), jnp.zeros(3)),
    "whole numbers": over(lambda h, x: jnp.maximum(h, jnp.roll(h, 1) + x.astype(int)), jnp.zeros(3, int)),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alikes_stay(name: str) -> None:
    graph, report = run(LOOK_ALIKES[name], X, passes=FULL, target="gpu")
    assert not {"log-sum-recurrence", "best-path-recurrence"} & set(report.rules)
    assert "scan" in ops(graph)
