"""Loops that run never or once."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import io_callback

from lepton_jax.ir import to_callable
from tests.passes._check import optimised, same
from tests.passes._golden import MATRIX, ONE, X, assert_text, assert_untouched, ops
from tests.passes._loops import trips

PASS = "constant-control"
kept = partial(same, passes=PASS, level="exact")


# Scans


def test_scan_that_never_runs() -> None:
    def f(c: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (c + x.sum(), (c, x * 2)), c, xs)

    graph = kept(f, ONE, jnp.zeros((0, 4)))
    assert_text(
        graph,
        """
        graph f(%0: f32[], %1: f32[0,4]) {
          %2: f32[0] = broadcast_in_dim[broadcast_dimensions=() shape=(0,)] 0.0
          %3: f32[0,4] = broadcast_in_dim[broadcast_dimensions=() shape=(0,4)] 0.0
          return %0, %2, %3
        }
        """,
    )


def test_scan_that_never_runs_and_stacks_keys() -> None:
    def f(xs: Any) -> Any:
        keys = lax.scan(lambda c, x: (c, jax.random.fold_in(jax.random.key(0), x)), ONE, xs)[1]
        return jax.random.key_data(keys)

    kept(f, jnp.zeros(0, jnp.int32), vmap=False)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_that_runs_once(reverse: bool) -> None:
    def f(w: Any, c: Any, xs: Any) -> Any:
        def body(state: Any, x: Any) -> Any:
            a, b = state
            return (b, a * w), (x, a + x, w)

        return lax.scan(body, (c, c + 1), xs, reverse=reverse, unroll=3)

    graph = same(f, ONE, ONE, X[:1], passes="constant-control,dce", level="exact")
    assert set(ops(graph)) <= {"add", "mul", "squeeze", "broadcast_in_dim", "reshape"}


def test_scan_that_runs_once_over_matrices_and_keys() -> None:
    def f(seed: Any, m: Any) -> Any:
        keys = jax.random.split(jax.random.key(seed), 1)

        def body(c: Any, x: Any) -> Any:
            key, row = x
            return c + jax.random.uniform(key), (row * 2, jax.random.split(key))

        total, (rows, more) = lax.scan(body, ONE, (keys, m))
        return total, rows, jax.random.key_data(more)

    graph = kept(f, jnp.uint32(1), MATRIX[None])
    assert "scan" not in ops(graph)


def test_scan_that_runs_twice_stays() -> None:
    assert_untouched(lambda xs: lax.scan(lambda c, x: (c + x, c), ONE, xs), X[:2], passes=PASS)


def test_scan_that_runs_once_with_effects() -> None:
    calls: list[float] = []

    def f(xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            io_callback(lambda v: calls.append(float(v)), None, x, ordered=True)
            io_callback(lambda v: calls.append(float(v)), None, c, ordered=True)
            return c + x, None

        return lax.scan(body, ONE, xs)[0]

    graph = optimised(f, jnp.asarray([5.0]), passes=PASS)
    assert "scan" not in ops(graph)
    jax.jit(to_callable(graph))(jnp.asarray([5.0]))
    jax.effects_barrier()
    assert calls == [5.0, 1.0]


# Whiles


@pytest.mark.parametrize(
    ("low", "high", "left"), [(3, 3, 0), (4, 2, 0), (2, 3, 1), (0, 1, 1), (0, 2, None), (1, 9, None)]
)
def test_fori_loop_with_traced_but_constant_bounds(low: int, high: int, left: int | None) -> None:
    graph = same(trips(low, high), X, passes="inline,constant-control,dce", level="exact", grad=False)
    if left is None:
        assert "while" in ops(graph)
    else:
        assert "while" not in ops(graph) and ops(graph).count("sin") == left


def test_while_that_runs_once_by_way_of_its_carry() -> None:
    def f(x: Any) -> Any:
        def body(state: Any) -> Any:
            _, step, value = state
            return step > 5, step + 1, value * step

        return lax.while_loop(lambda s: s[0], body, (True, 2, x))

    assert_text(
        same(f, X, passes="constant-control,dce", level="exact", grad=False),
        """
        graph f(%0: f32[3]) {
          %1: bool[] = gt 2 5
          %2: i32[] = add 2 1
          %3: f32[] = convert_element_type[new_dtype=float32 weak_type=False] 2
          %4: f32[3] = mul %0 %3
          return %1, %2, %4
        }
        """,
    )


def test_while_whose_course_depends_on_the_input() -> None:
    def f(n: Any, x: Any) -> Any:
        def body(state: Any) -> Any:
            return state[0] + 1, state[1] * 2

        counted = lax.while_loop(lambda s: s[0] < n, body, (0, x))[1]
        grown = lax.while_loop(lambda s: jnp.sum(s[1]) < 9.0, body, (0, x))[1]
        return counted, grown

    assert_untouched(f, 1, X, passes=PASS)


def test_while_that_might_stop_at_once_or_after_one_iteration() -> None:
    def f(p: Any, x: Any) -> Any:  # no constant says whether it runs, one that it runs at most once
        return lax.while_loop(lambda s: s[0], lambda s: (False, s[1] * 2), (p, x))[1]

    assert_untouched(f, True, X, passes=PASS)


def test_while_whose_condition_takes_a_region() -> None:
    def f(x: Any) -> Any:
        def cond(state: Any) -> Any:
            return lax.cond(state[0] < 1, lambda: True, lambda: False)

        return lax.while_loop(cond, lambda s: (s[0] + 1, s[1] * 2), (0, x))[1]

    kept(f, X, grad=False)


def test_trying_a_while_leaves_no_trace() -> None:
    def f(x: Any) -> Any:
        y = jnp.sin(x)

        def body(state: Any) -> Any:
            i, v = state
            return i + 1, lax.scan(lambda c, _: (jax.jit(jnp.cos)(c) * y, None), v, length=2)[0]

        return lax.while_loop(lambda s: s[0] < 3, body, (0, y))[1], y

    graph = assert_untouched(f, X, passes=PASS)
    nodes = set(graph.walk())
    users = [user for node in nodes for value in node.results for user, _ in value.uses]
    owners = [parent for inner in graph.graphs() for parent in inner.parents]
    returns = {inner.ret for inner in graph.graphs()}
    assert set(users) <= nodes | returns and set(owners) <= nodes
