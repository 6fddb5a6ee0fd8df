"""Common subexpressions in loops, branches and calls, and what these read from outside."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tests.passes._check import fired, optimised, same
from tests.passes._golden import ONE, X, assert_text, assert_untouched, ops

kept = partial(same, passes="cse", level="exact")


def test_inside_loops_branches_and_calls() -> None:
    def f(x: Any) -> Any:
        def body(c: Any, y: Any) -> Any:
            return c + jnp.sin(y) * jnp.sin(y), jnp.cos(c) - jnp.cos(c)

        total, _ = lax.scan(body, ONE, x)
        total = lax.while_loop(lambda s: s * s + s * s < 50.0, lambda s: (s + 1) * (s + 1), total)
        total = lax.cond(total > 0, lambda t: t * t + t * t, lambda t: t, total)
        return jax.jit(lambda t: jnp.exp(t) + jnp.exp(t))(total)

    graph = kept(f, X, grad=False)
    names = ops(graph)
    assert (names.count("sin"), names.count("cos"), names.count("exp"), names.count("mul")) == (1, 1, 1, 4)


def test_whole_loops() -> None:
    def total(w: Any, xs: Any, start: Any) -> Any:
        return lax.scan(lambda c, x: (c * w + x, c), start, xs)

    def f(w: Any, xs: Any) -> Any:
        return total(w, xs, ONE), total(w, xs, ONE), total(w, xs, w), total(xs[0], xs, ONE)

    graph = kept(f, ONE, X)
    assert ops(graph).count("scan") == 3
    assert graph.outputs[0] is graph.outputs[2]


def test_loops_that_differ_in_one_thing() -> None:
    def f(xs: Any, ys: Any) -> Any:
        def step(c: Any, x: Any) -> Any:
            return c + x, c

        def late(c: Any, x: Any) -> Any:
            return c + x, c + x

        return (
            lax.scan(step, ONE, xs),
            lax.scan(step, ONE, xs, reverse=True),
            lax.scan(step, ONE, xs, unroll=2),
            lax.scan(step, ONE, ys),
            lax.scan(late, ONE, xs)[1],
        )

    graph = optimised(f, X, X, passes="cse")
    assert ops(graph).count("scan") == 5


def test_loops_that_are_equal_only_once_simplified() -> None:
    def f(xs: Any) -> Any:
        one = lax.scan(lambda c, x: (c + jnp.sin(x) * jnp.sin(x), None), ONE, xs)[0]

        def body(c: Any, x: Any) -> Any:
            s = jnp.sin(x)
            return c + s * s, None

        return one, lax.scan(body, ONE, xs)[0]

    graph = kept(f, X)
    assert ops(graph).count("scan") == 1


def test_whole_calls_and_branches() -> None:
    big = jax.jit(lambda x: jnp.sin(x) * 2)

    def f(p: Any, x: Any) -> Any:
        def either() -> Any:
            return lax.cond(p, lambda v: v * 2, lambda v: v, x)

        return either(), either(), big(x), big(x), big(x + 1)

    graph = kept(f, True, X)
    assert [node.op for node in graph if node.regions] == ["cond", "jit", "jit"]


def test_regions_read_what_was_computed_outside() -> None:
    def f(x: Any) -> Any:
        wave = jnp.cos(x)
        total, _ = lax.scan(lambda c, y: (c + jnp.sum(jnp.cos(x)) * y, None), ONE, x)

        def body(state: Any) -> Any:
            return state[0] + 1, state[1] * jnp.cos(x)

        looped = lax.while_loop(lambda s: (s[0] < 3) & (jnp.sum(jnp.cos(x)) < 9), body, (0, x))[1]
        chosen = lax.switch(jnp.int32(x[0]), [lambda: x, lambda: jnp.cos(x), lambda: 2 * x])
        called = jax.jit(lambda v: jnp.cos(v) + 1)(x)
        return wave, total, looped, chosen, called

    graph = kept(f, X, grad=False)
    assert ops(graph).count("cos") == 1
    assert fired(f, X, passes="cse")["same-as-outside"] == 5

    def scan_alone(x: Any, xs: Any) -> Any:
        return jnp.cos(x), lax.scan(lambda c, y: (c * jnp.cos(x) + y, None), x, xs)[0]

    assert_text(
        kept(scan_alone, ONE, X),
        """
        graph f(%0: f32[], %1: f32[3]) {
          %2: f32[] = cos[accuracy=None] %0
          %3: f32[] = scan[length=3 num_carry=1 num_consts=2 reverse=False unroll=1] %2 %0 %0 %1 {
            region body(%0: f32[], %1: f32[], %2: f32[], %3: f32[]) {
              %4: f32[] = mul %2 %0
              %5: f32[] = add %4 %3
              return %5
            }
          }
          return %2, %3
        }
        """,
    )


def test_a_chain_is_read_at_its_end() -> None:
    def f(x: Any, xs: Any) -> Any:
        def chain() -> Any:
            return jnp.tan(jnp.sin(jnp.cos(x)))

        return chain(), lax.scan(lambda c, y: (c * chain() + y, None), x, xs)[0]

    graph = kept(f, ONE, X)
    assert ops(graph) == ["cos", "sin", "tan", "scan", "mul", "add"]
    assert next(node for node in graph if node.op == "scan").params["num_consts"] == 2


def test_what_a_region_is_given_already_is_not_given_twice() -> None:
    def f(x: Any, xs: Any) -> Any:
        wave = jnp.cos(x)
        return lax.scan(lambda c, y: (c * wave + (c * jnp.cos(x)) * (y + 3), None), x, xs)[0]

    names = ops(kept(f, ONE, X))
    assert (names.count("cos"), names.count("mul")) == (1, 2)


def test_inputs_that_hold_the_same_count_as_one() -> None:
    def f(x: Any, xs: Any) -> Any:
        twice = jax.jit(lambda a, b: jnp.sin(a) + jnp.sin(b))
        return twice(x, x), lax.cond(x > 0, lambda a, b: jnp.sin(a) * jnp.sin(b), lambda a, b: a, x, x)

    assert ops(kept(f, ONE, X)).count("sin") == 2


def test_results_of_inner_regions_reach_two_levels_out() -> None:
    def f(x: Any, xs: Any) -> Any:
        wave = jnp.cos(x)

        def body(c: Any, y: Any) -> Any:
            inner = jnp.sin(jnp.cos(x))
            return lax.scan(lambda d, z: (d * jnp.sin(jnp.cos(x)) + z, None), c * inner + y, xs)[0], None

        return wave, lax.scan(body, x, xs)[0]

    names = ops(kept(f, ONE, X))
    assert (names.count("cos"), names.count("sin")) == (1, 1)


def test_a_broadcast_outside_is_made_again_inside() -> None:
    def f(x: Any, xs: Any) -> Any:
        wide = lax.full((16, 16), x)
        return lax.scan(lambda c, y: (c + lax.full((16, 16), x) * y, None), wide, xs)[0]

    assert_untouched(f, ONE, X, passes="cse")


def test_carries_and_scanned_inputs_are_not_the_outer_values() -> None:
    def f(x: Any, xs: Any) -> Any:
        waves = jnp.cos(x), jnp.cos(xs)
        return waves, lax.scan(lambda c, y: (jnp.cos(c) + y, jnp.cos(y)), x, xs)

    assert_untouched(f, ONE, X, passes="cse")


def test_nothing_is_taken_from_one_branch_to_another_or_from_later() -> None:
    def f(p: Any, x: Any) -> Any:
        chosen = lax.cond(p, lambda: jnp.cos(x), lambda: jnp.cos(x) + 1)
        return chosen, jnp.cos(x)

    assert_untouched(f, True, X, passes="cse")


def test_shared_functions_read_nothing_from_outside() -> None:
    wave = jax.jit(lambda v: jnp.cos(v) + 1)

    def f(x: Any, y: Any) -> Any:
        return jnp.cos(x), wave(x), wave(y)

    assert_untouched(f, X, X, passes="cse")
