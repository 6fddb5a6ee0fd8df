"""Dead code elimination in loops: which outputs, carries, operands and constants go."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax

from tests.passes._check import same
from tests.passes._golden import ONE, X, assert_text, assert_untouched, ops

kept = partial(same, passes="dce", level="exact")


# Scan


def scan_with_leftovers(w: Any, unused: Any, xs: Any, more: Any) -> Any:
    def body(carry: Any, x: Any) -> Any:
        total, lonely = carry
        a, b = x
        return (total + a, jnp.cos(lonely) * b), (total * a, jnp.sin(w), unused + a)

    (total, _), (products, _, _) = lax.scan(body, (ONE, w), (xs, more))
    return total, products


def test_scan_loses_outputs_carries_operands_and_constants() -> None:
    assert_text(
        kept(scan_with_leftovers, ONE, ONE, X, X),
        """
        graph f(%0: f32[], %1: f32[], %2: f32[3], %3: f32[3]) {
          %4: f32[], %5: f32[3] = scan[length=3 num_carry=1 num_consts=0 reverse=False unroll=1] 1.0 %2 {
            region body(%0: f32[], %1: f32[]) {
              %2: f32[] = add %0 %1
              %3: f32[] = mul %0 %1
              return %2, %3
            }
          }
          return %4, %5
        }
        """,
    )


def test_scan_keeps_reverse_and_unroll() -> None:
    def f(xs: Any) -> Any:
        return lax.scan(lambda c, x: (c * x + 1, c), ONE, xs, reverse=True, unroll=2)[0]

    graph = kept(f, X)
    (scan,) = graph
    assert scan.params["reverse"] and scan.params["unroll"] == 2
    assert len(scan.results) == 1


def test_carries_that_feed_only_each_other() -> None:
    def f(xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            a, b, c = carry
            return (b * x, a + x, c + x), None

        return lax.scan(body, (ONE, jnp.float32(2.0), jnp.float32(3.0)), xs)[0][2]

    graph = kept(f, X)
    (scan,) = graph
    assert scan.params["num_carry"] == 1
    assert ops(graph) == ["scan", "add"]


def test_a_carry_that_feeds_a_live_one_stays() -> None:
    def f(xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            a, b = carry
            return (a * x, b + a), None

        return lax.scan(body, (ONE, ONE), xs)[0][1]

    assert_untouched(f, X, passes="dce")


def test_dead_nodes_inside_that_read_a_constant() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            jnp.sin(w)  # nothing that the loop returns goes with it
            return c + x, c

        return lax.scan(body, ONE, xs)

    graph = kept(f, ONE, X)
    assert ops(graph) == ["scan", "add"]
    assert next(iter(graph)).params["num_consts"] == 0


def test_scan_without_results_goes() -> None:
    def f(xs: Any) -> Any:
        lax.scan(lambda c, x: (c + x, c), ONE, xs)
        return xs

    assert ops(kept(f, X)) == []


def test_scan_of_length_zero_and_of_no_elements() -> None:
    def f(xs: Any) -> Any:
        return lax.scan(lambda c, x: (c + x.sum(), (c, x * 2)), ONE, xs)[1][1]

    assert kept(f, jnp.zeros((0, 2))).outputs[0].shape == (0, 2)
    assert kept(f, jnp.zeros((3, 0))).outputs[0].shape == (3, 0)


# Loops in loops


def test_a_constant_that_only_an_inner_leftover_reads() -> None:
    def f(w: Any, xs: Any) -> Any:
        def inner(c: Any, y: Any) -> Any:
            return c + y, c * w

        def body(c: Any, x: Any) -> Any:
            return lax.scan(inner, c, jnp.stack([x, x]))[0], None

        return lax.scan(body, ONE, xs)[0]

    graph = kept(f, ONE, X)
    (outer,) = graph
    (inner,) = (node for node in outer.regions[0] if node.op == "scan")
    assert (outer.params["num_consts"], inner.params["num_consts"]) == (0, 0)


def test_carries_that_feed_themselves_through_an_inner_loop() -> None:
    def f(xs: Any, w: Any) -> Any:
        def inner(state: Any, y: Any) -> Any:
            total, lonely = state
            return (total + y, lonely * jnp.sin(y)), None

        def body(state: Any, x: Any) -> Any:
            return lax.scan(inner, state, xs * x)[0], None

        return lax.scan(body, (ONE, w), xs)[0][0]

    assert_text(
        kept(f, X, ONE),
        """
        graph f(%0: f32[3], %1: f32[]) {
          %2: f32[] = scan[length=3 num_carry=1 num_consts=1 reverse=False unroll=1] %0 1.0 %0 {
            region body(%0: f32[3], %1: f32[], %2: f32[]) {
              %3: f32[3] = mul %0 %2
              %4: f32[] = scan[length=3 num_carry=1 num_consts=0 reverse=False unroll=1] %1 %3 {
                region body(%0: f32[], %1: f32[]) {
                  %2: f32[] = add %0 %1
                  return %2
                }
              }
              return %4
            }
          }
          return %2
        }
        """,
    )


def test_carries_that_feed_themselves_through_a_branch_and_a_while() -> None:
    def f(x: Any, w: Any) -> Any:
        def body(state: Any) -> Any:
            i, total, lonely = state
            total, lonely = lax.cond(
                i > 1, lambda t, v: (t + 1, v * 2), lambda t, v: (t * 2, v), total, lonely
            )
            return i + 1, total, lonely

        return lax.while_loop(lambda s: s[0] < 4, body, (0, x, w))[1]

    graph = kept(f, X, X, grad=False)
    assert [len(node.results) for node in graph.walk() if node.regions] == [2, 1]


# While


def test_while_loses_carries_that_the_condition_does_not_read() -> None:
    def f(x: Any, w: Any) -> Any:
        def body(state: Any) -> Any:
            i, total, lonely = state
            return i + 1, total * 2, lonely + jnp.sin(w) * total

        return lax.while_loop(lambda s: s[0] < 3, body, (0, x, x))[1]

    assert_text(
        kept(f, X, X, grad=False),
        """
        graph f(%0: f32[3], %1: f32[3]) {
          _: i32[], %2: f32[3] = while[body_nconsts=0 cond_nconsts=0] 0 %0 {
            region cond(%0: i32[], %1: f32[3]) {
              %2: bool[] = lt %0 3
              return %2
            }
            region body(%0: i32[], %1: f32[3]) {
              %2: i32[] = add %0 1
              %3: f32[3] = mul %1 2.0
              return %2, %3
            }
          }
          return %2
        }
        """,
    )


def test_while_keeps_what_the_condition_needs_by_way_of_others() -> None:
    def f(x: Any) -> Any:
        def cond(state: Any) -> Any:
            return state[0] < 3

        def body(state: Any) -> Any:
            i, step, total = state
            return i + step, step + 1, total * 2

        return lax.while_loop(cond, body, (0, 1, x))[2]

    assert_untouched(f, X, passes="dce")


def test_while_carry_read_only_by_dead_nodes_of_the_condition() -> None:
    def f(x: Any) -> Any:
        def cond(state: Any) -> Any:
            jnp.sum(state[2])
            return state[0] < 3

        return lax.while_loop(cond, lambda s: (s[0] + 1, s[1] * 2, s[2] + 1), (0, x, x))[1]

    graph = kept(f, X, grad=False)
    assert len(next(iter(graph)).results) == 2


def test_unused_while_goes() -> None:
    def f(x: Any) -> Any:
        lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 2), (0, x))
        return x

    assert ops(kept(f, X)) == []
