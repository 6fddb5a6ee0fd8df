"""Carries, stacked outputs and results of loops and branches that are known outside of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tests.passes._check import fired, same
from tests.passes._golden import ONE, X, assert_text, assert_untouched, ops
from tests.passes._loops import handed_on

kept = partial(same, passes="forward", level="exact")


# A carry that the body returns unchanged becomes a constant of the loop


def test_unchanged_carry_of_a_scan() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            a, b = carry
            return (a, b + a * x), None

        return lax.scan(body, (w, ONE), xs)[0]

    assert_text(
        kept(f, ONE, X),
        """
        graph f(%0: f32[], %1: f32[3]) {
          %2: f32[] = scan[length=3 num_carry=1 num_consts=1 reverse=False unroll=1] %0 1.0 %1 {
            region body(%0: f32[], %1: f32[], %2: f32[]) {
              %3: f32[] = mul %0 %2
              %4: f32[] = add %1 %3
              return %4
            }
          }
          return %0, %2
        }
        """,
    )


def test_unchanged_carries_of_a_while() -> None:
    def f(x: Any, y: Any, n: Any) -> Any:
        def body(state: Any) -> Any:
            i, total, step, end = state
            return i + 1, total * step, handed_on(step)[0], handed_on(end)[0]

        return lax.while_loop(lambda s: s[0] < s[3], body, (0, x, y, n))

    graph = same(f, X, X, 3, passes="inline,forward,dce", level="exact", grad=False)
    assert_text(
        graph,
        """
        graph f(%0: f32[3], %1: f32[3], %2: i32[]) {
          %3: i32[], %4: f32[3] = while[body_nconsts=1 cond_nconsts=1] %2 %1 0 %0 {
            region cond(%0: i32[], %1: i32[], %2: f32[3]) {
              %3: bool[] = lt %1 %0
              return %3
            }
            region body(%0: f32[3], %1: i32[], %2: f32[3]) {
              %3: i32[] = add %1 1
              %4: f32[3] = mul %2 %0
              return %3, %4
            }
          }
          return %3, %4, %1, %2
        }
        """,
    )


def test_a_scan_that_runs_never_returns_its_carry() -> None:
    def f(w: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (c, c * x), w, xs)

    kept(f, ONE, jnp.zeros(0))
    kept(f, jnp.zeros((0, 2)), X)


def test_swapped_and_rotated_carries_are_not_unchanged() -> None:
    def f(a: Any, b: Any, c: Any, xs: Any) -> Any:
        return lax.scan(lambda s, x: ((s[1], s[2], s[0]), s[0] * x), (a, b, c), xs)

    assert_untouched(f, ONE, ONE, ONE, X, passes="forward")


# Stacked outputs


def test_stacked_input_is_that_input() -> None:
    def f(xs: Any, ys: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            return c + x[0], (handed_on(x[1])[0], c, handed_on(x[0])[0])

        return lax.scan(body, ONE, (xs, ys), reverse=True)

    graph = kept(f, X, X)
    assert graph.outputs[1] is graph.inputs[1] and graph.outputs[3] is graph.inputs[0]
    assert fired(f, X, X, passes="forward") == {"forwarded-result": 2, "stacked-input": 2}


def test_stacked_constant_is_a_broadcast() -> None:
    def f(w: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (c + x * w[0], (w, jnp.float32(3.0))), ONE, xs)[1]

    assert_text(
        same(f, X, X, passes="forward,dce", level="exact"),
        """
        graph f(%0: f32[3], %1: f32[3]) {
          %2: f32[3,3] = broadcast_in_dim[broadcast_dimensions=(1,) shape=(3,3)] %0
          %3: f32[3] = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 3.0
          return %2, %3
        }
        """,
    )


def test_stacked_carry_stays() -> None:
    assert_untouched(lambda xs: lax.scan(lambda c, x: (x, c), ONE, xs), X, passes="forward")


def test_stacked_key_is_broadcast() -> None:
    def f(seed: Any, xs: Any) -> Any:
        key = jax.random.key(seed)
        keys = lax.scan(lambda c, x: (c + x, key), ONE, xs)[1]
        return jax.random.key_data(keys)

    graph = kept(f, jnp.uint32(1), X)
    assert "broadcast_in_dim" in ops(graph)


# Carries, outputs and operands that are always equal


def test_equal_carries_and_outputs_are_kept_once() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            a, b = carry
            return (a * x + b, a * x + b), (a, b)

        return lax.scan(body, (w, w), xs)

    graph = same(f, ONE, X, passes="cse,forward,cse", level="exact")
    assert_text(
        graph,
        """
        graph f(%0: f32[], %1: f32[3]) {
          %2: f32[], %3: f32[3] = scan[length=3 num_carry=1 num_consts=0 reverse=False unroll=1] %0 %1 {
            region body(%0: f32[], %1: f32[]) {
              %2: f32[] = mul %0 %1
              %3: f32[] = add %2 %0
              return %3, %0
            }
          }
          return %2, %2, %3, %3
        }
        """,
    )


def test_carries_that_differ_in_start_or_in_step_stay() -> None:
    def f(w: Any, v: Any, xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            a, b, c = carry
            s = a * x
            return (s, s, b + c), None

        return lax.scan(body, (w, v, w), xs)[0]

    assert_untouched(f, ONE, ONE, X, passes="forward")


def test_operands_given_twice_are_given_once() -> None:
    def f(p: Any, x: Any, y: Any) -> Any:
        total, _ = lax.scan(lambda c, t: (c + t[0] * t[1], None), ONE, (x, x))
        chosen = lax.cond(p, lambda a, b: a + b, lambda a, b: a * b, y, y)
        called = jax.jit(lambda a, b: jnp.sin(a) - b)(x, x)
        again = jax.checkpoint(lambda a, b: jnp.sin(a) - b)(x, x)
        return total, chosen, called, again

    graph = kept(f, True, X, X)
    assert [len(node.operands) for node in graph if node.regions] == [2, 2, 1, 1]


def test_results_of_a_branch_that_are_equal_in_every_branch_are_kept_once() -> None:
    def f(i: Any, x: Any) -> Any:
        def twice(g: Any) -> Any:
            return lambda v: (g(v),) * 2

        return lax.switch(i, [twice(jnp.sin), twice(jnp.cos), twice(jnp.tan)], x)

    graph = kept(f, 1, X)
    assert [len(node.results) for node in graph if node.regions] == [1]

    def g(p: Any, x: Any) -> Any:
        return lax.cond(p, lambda v: (v * 2,) * 2, lambda v: (v * 2, v * 3), x)

    assert_untouched(g, True, X, passes="forward")


def test_a_function_with_two_callers_keeps_its_interface() -> None:
    shared = jax.jit(lambda a, b: (jnp.sin(a) - b, a))

    def f(x: Any, y: Any) -> Any:
        return shared(x, x)[0], shared(x, y)[0]

    assert_untouched(f, X, X, passes="forward")
