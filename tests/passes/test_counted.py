"""Loops with a counter: known lengths, rows read and rows written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import pytest
from jax import lax

from lepton_jax.rewrite import profit
from tests.passes._check import run, same
from tests.passes._golden import assert_every_gate, assert_text
from tests.passes._loops import alike, around, body, normal, ops

PASS = "counted"
FULL = around(PASS)
X = normal(8, 4)


@pytest.fixture(autouse=True)
def whether_or_not_it_pays() -> Iterator[None]:
    with profit.disregarded():
        yield


def test_golden() -> None:
    def f(x: Any) -> Any:
        def body(i: Any, state: Any) -> Any:
            h, out = state
            h = jnp.maximum(h, x[i])
            return h, out.at[i].set(h)

        return lax.fori_loop(0, 8, body, (jnp.zeros(4), jnp.zeros((8, 4))))

    graph = same(f, X, passes=FULL)
    assert_text(
        graph,
        """
        graph f(%0: f32[8,4]) {
          %1: f32[4] = broadcast_in_dim[broadcast_dimensions=() shape=(4,)] 0.0
          %2: f32[4], %3: f32[8,4] = scan[length=8 num_carry=1 num_consts=0 reverse=False unroll=1] %1 %0 {
            region body(%0: f32[4], %1: f32[4]) {
              %2: f32[4] = max %0 %1
              return %2, %2
            }
          }
          return %2, %3
        }
        """,
    )


@pytest.mark.parametrize(
    ("first", "test", "by", "trips"),
    [
        (0, lambda i: i < 7, 1, 7),
        (1, lambda i: i <= 7, 2, 4),
        (9, lambda i: i > 2, -3, 3),
        (9, lambda i: i >= 3, -1, 7),
        (5, lambda i: i < 5, 1, 0),
    ],
)
def test_known_trips(first: int, test: Any, by: int, trips: int) -> None:
    def f(x: Any) -> Any:
        return lax.while_loop(lambda s: test(s[0]), lambda s: (s[0] + by, jnp.sin(s[1]) + x), (first, x))

    graph, report = run(f, X, passes=f"inline,{PASS}")
    (loop,) = [node for node in graph if node.op == "scan"]
    assert (loop.params["length"], report.rules["known-trips"]) == (trips, 1)
    same(f, X, passes=FULL, grad=False)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("backwards", [False, True])
def test_rows_of_every_axis(axis: int, backwards: bool) -> None:
    def f(x: Any) -> Any:
        n = x.shape[axis]

        def body(i: Any, state: Any) -> Any:
            place = n - 1 - i if backwards else i
            return jnp.sin(state) + lax.dynamic_index_in_dim(x, place, axis, keepdims=False)

        return lax.fori_loop(0, n, body, jnp.zeros([d for k, d in enumerate(x.shape) if k != axis]))

    assert "dynamic_slice" not in ops(same(f, normal(3, 4, 5), passes=FULL))


def test_neighbours_and_parts_of_rows() -> None:
    def f(x: Any) -> Any:
        def body(i: Any, total: Any) -> Any:
            return total + jnp.sin(x[i + 1, 1:3] - x[i, 1:3]) * x[i, 0]

        return lax.fori_loop(0, 7, body, jnp.zeros(2))

    _, report = run(f, X, passes=FULL)
    assert report.rules["indexed-input"] == 3
    assert "dynamic_slice" not in ops(same(f, X, passes=FULL))


def test_scans_that_run_backwards() -> None:
    def f(x: Any) -> Any:
        def step(i: Any, xt: Any) -> Any:
            return i + 1, xt * x[i]

        return lax.scan(step, 0, x, reverse=True)[1]

    assert "dynamic_slice" not in ops(same(f, X, passes=FULL))


@pytest.mark.parametrize("kind", ["set", "add", "slice", "backwards", "part"])
def test_rows_written(kind: str) -> None:
    def f(x: Any) -> Any:
        def body(i: Any, out: Any) -> Any:
            row = jnp.sin(x[i])
            if kind == "slice":
                return lax.dynamic_update_index_in_dim(out, row[:3], i, 1)
            if kind == "add":
                return out.at[i].add(row)
            return out.at[{"backwards": 7 - i, "part": i + 2}.get(kind, i)].set(row)

        start = jnp.ones((3, 8)) if kind == "slice" else jnp.ones((8, 4))
        return lax.fori_loop(0, 5 if kind == "part" else 8, body, start)

    graph, _ = alike(f, X, passes=FULL, target="cpu", every=True)
    assert not {"scatter", "scatter-add"} & set(ops(graph)[ops(graph).index("scan") :])
    (loop,) = [node for node in graph if node.op == "scan"]
    assert loop.params["num_carry"] == 0


def rules(fun: Any, *args: Any) -> set[str]:
    """The rules of the pass that fired."""
    return set(run(fun, *args, passes=f"inline,{PASS}")[1].rules) - {"inline-call"}


def test_unknown_lengths_stay() -> None:
    def bound(x: Any, n: Any) -> Any:
        return lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x))

    def endless(x: Any) -> Any:
        return lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] - 1, s[1]), (0, x))

    def converging(x: Any) -> Any:
        return lax.while_loop(lambda s: (s[0] < 5) & (s[1][0] > 0), lambda s: (s[0] + 1, s[1] - 1), (0, x[0]))

    def jumping(x: Any) -> Any:
        return lax.while_loop(lambda s: s[0] < 50, lambda s: (s[0] * 2, s[1] + 1), (1, x))

    assert rules(bound, X, 5) == rules(endless, X) == rules(converging, X) == rules(jumping, X) == set()


def test_other_indices_stay() -> None:
    def strided(x: Any) -> Any:
        return lax.fori_loop(0, 4, lambda i, c: jnp.sin(c) + x[2 * i], jnp.zeros(4))

    def outside(x: Any) -> Any:
        return lax.fori_loop(0, 9, lambda i, c: jnp.sin(c) + x[i], jnp.zeros(4))

    def chosen(x: Any, order: Any) -> Any:
        return lax.fori_loop(0, 8, lambda i, c: jnp.sin(c) + x[order[i]], jnp.zeros(4))

    assert rules(strided, X) == rules(outside, X) == set()
    _, report = run(chosen, X, jnp.arange(8), passes=FULL)
    assert report.rules["indexed-input"] == 1  # the order itself


def test_rows_that_the_loop_reads_stay() -> None:
    def f(x: Any) -> Any:
        def body(i: Any, out: Any) -> Any:
            return out.at[i].set(out[0] + x[i])

        return lax.fori_loop(1, 8, body, x)

    graph = same(f, X, passes=FULL)
    assert "scatter" in ops(graph)


@pytest.mark.parametrize("backwards", [False, True])
def test_rows_that_are_read_before_they_are_written(backwards: bool) -> None:
    """In place, and further on, where the loop comes later."""

    def f(x: Any, y: Any) -> Any:
        def body(i: Any, out: Any) -> Any:
            at, ahead = (6 - i, 5 - i) if backwards else (i, i + 1)
            return out.at[at].set(jnp.sin(out[at]) + 2 * out[ahead] + y[i])

        return lax.fori_loop(0, 6, body, x)

    graph, report = alike(f, X, X + 1, passes=FULL, target="cpu")
    assert report.rules["indexed-input"] == 3
    assert {"dynamic_slice", "scatter"}.isdisjoint(body(graph))


def test_rows_that_were_written_before_are_no_inputs() -> None:
    def f(x: Any) -> Any:
        return lax.fori_loop(0, 2, lambda i, out: out.at[i + 6].set(out[i + 1] + out[5]), x)

    graph, report = alike(f, X, passes=FULL, target="cpu")
    assert "indexed-input" not in report.rules and "dynamic_slice" in ops(graph)


def test_every_gate() -> None:
    def f(x: Any) -> Any:
        return lax.fori_loop(0, 8, lambda i, out: out.at[i].set(x[i] * 2), jnp.zeros((8, 4)))

    assert assert_every_gate(f, X, passes=f"inline,dce,{PASS}") >= 2
