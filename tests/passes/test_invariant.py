"""Loop-invariant code: what moves out of which loops, and what stays."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

from lepton_jax.ir import to_callable
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.printer import params_text
from tests.passes._check import fired, optimised, same
from tests.passes._golden import MATRIX, ONE, X, assert_every_gate, assert_text, assert_untouched, ops

PASS = "invariant"
kept = partial(same, passes=PASS, level="exact")


def outside(graph: Graph) -> list[str]:
    """The operations that are in no loop."""
    return [node.op for node in graph]


def test_dot_moves_out_of_a_scan() -> None:
    def f(a: Any, b: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (c + (a @ b) * x, None), a, xs)[0]

    graph = kept(f, MATRIX, MATRIX, X)
    dot, _ = graph
    assert (dot.op, dot.operands) == ("dot_general", graph.inputs[:2])
    assert_text(
        graph,
        """
        graph f(%0: f32[3,3], %1: f32[3,3], %2: f32[3]) {
          %3: f32[3,3] = dot_general[] %0 %1
          %4: f32[3,3] = scan[length=3 num_carry=1 num_consts=1 reverse=False unroll=1] %3 %0 %2 {
            region body(%0: f32[3,3], %1: f32[3,3], %2: f32[]) {
              %3: f32[3,3] = mul %0 %2
              %4: f32[3,3] = add %1 %3
              return %4
            }
          }
          return %4
        }
        """.replace("dot_general[]", f"dot_general{params_text(dot)}"),
    )


def test_from_the_condition_and_the_body_of_a_while() -> None:
    def f(w: Any, x: Any) -> Any:
        def cond(state: Any) -> Any:
            return (state[0] < 3) & (jnp.sum(jnp.sin(w)) < 9)

        def body(state: Any) -> Any:
            return state[0] + 1, state[1] * jnp.sum(jnp.cos(w)) + jnp.tan(w)

        return lax.while_loop(cond, body, (0, x))

    graph = kept(f, X, X, grad=False)
    loop = next(node for node in graph if node.op == "while")
    assert (loop.params["cond_nconsts"], loop.params["body_nconsts"]) == (1, 2)
    assert [node.op for node in loop.regions[1]] == ["add", "mul", "add"]
    assert fired(f, X, X, passes=PASS) == {"invariant-node": 3}


def test_out_of_two_loops() -> None:
    def f(a: Any, xs: Any) -> Any:
        def outer(c: Any, x: Any) -> Any:
            def inner(d: Any, y: Any) -> Any:
                return d + jnp.sum(a @ a) * jnp.sum(jnp.sin(x * a)) * y, None

            return lax.scan(inner, c, xs)[0], None

        return lax.scan(outer, ONE, xs)[0]

    graph = kept(f, MATRIX, X)
    assert outside(graph) == ["dot_general", "reduce_sum", "scan"]
    outer = next(node for node in graph if node.op == "scan")
    assert [node.op for node in outer.regions[0]] == ["mul", "sin", "reduce_sum", "mul", "scan"]
    inner = next(node for node in outer.regions[0] if node.op == "scan")
    assert [node.op for node in inner.regions[0]] == ["mul", "add"]


def test_whole_inner_loops_branches_and_calls_move() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            fixed = lax.scan(lambda d, y: (d * y, None), ONE, w)[0]
            chosen = lax.cond(w[0] > 0, jnp.sin, jnp.cos, w)
            called = jax.jit(lambda v: jnp.tan(v) * 2)(w)
            return c * fixed + x * chosen + called, None

        return lax.scan(body, w, xs)[0]

    graph = kept(f, X, X)
    assert sorted(op for op in outside(graph) if op in ("scan", "cond", "jit")) == [
        "cond",
        "jit",
        "scan",
        "scan",
    ]


def test_broadcasts_and_other_movement_stay() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            return c + jnp.broadcast_to(w, (3, 3)).T * x + lax.iota(jnp.float32, 3) + w.astype("bfloat16")[
                ::-1
            ], None

        return lax.scan(body, MATRIX, xs)[0]

    assert_untouched(f, X, X, passes=PASS)


def test_work_under_a_broadcast_moves_without_it() -> None:
    def f(w: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (c + jnp.sin(w) * x, None), MATRIX, xs)[0]

    graph = kept(f, X, X)
    (scan,) = (node for node in graph if node.op == "scan")
    assert "sin" in outside(graph)
    assert "broadcast_in_dim" in [node.op for node in scan.regions[0]]
    assert scan.operands[0].shape == (3,)


def test_what_is_larger_than_its_operands_stays() -> None:
    def f(w: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (c + jnp.outer(w, w) * x, None), MATRIX, xs)[0]

    assert_untouched(f, X, X, passes=PASS)


def test_what_two_results_share_moves_once() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            shared = jnp.sin(w)
            return c + jnp.sum(shared * shared) * x, shared * x

        return lax.scan(body, ONE, xs)

    graph = kept(f, X, X)
    assert outside(graph) == ["sin", "mul", "reduce_sum", "scan"]


def test_moved_work_that_only_other_moved_work_needs_is_not_kept() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            wide = jnp.broadcast_to(jnp.sin(w), (3, 3))
            return c + jnp.sum(wide * wide) * x + wide, None

        return lax.scan(body, MATRIX, xs)[0]

    graph = kept(f, X, X)
    (scan,) = (node for node in graph if node.op == "scan")
    assert max(value.ndim for value in scan.operands[: scan.params["num_consts"]]) == 1


@pytest.mark.parametrize("length", [0, 1])
def test_loops_that_run_at_most_once_are_left_alone(length: int) -> None:
    def f(w: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (c + jnp.sin(w) * x, None), w, xs)[0]

    assert_untouched(f, X, X[:length], passes=PASS)


def test_what_depends_on_the_iteration_stays() -> None:
    def f(w: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (jnp.sin(c) * w + jnp.cos(x), None), w, xs)[0]

    assert_untouched(f, X, X, passes=PASS)


def test_a_shared_function_is_left_alone() -> None:
    def f(w: Any, xs: Any) -> Any:
        looped = jax.jit(lambda v: lax.scan(lambda c, x: (c + jnp.sin(v) * x, None), v, xs)[0])
        return looped(w), looped(w + 1)

    graph = kept(f, X, X)
    assert [node.op for node in next(node for node in graph if node.op == "jit").regions[0]] == [
        "sin",
        "scan",
    ]


def test_effects_and_hidden_random_state_stay() -> None:
    calls: list[float] = []
    shape = jax.ShapeDtypeStruct((), jnp.float32)

    def note(x: Any) -> Any:
        calls.append(float(x))
        return np.float32(x)

    def f(w: Any) -> Any:
        draw = jax.jit(lambda v: lax.rng_uniform(0.0, v, ()))

        def body(c: Any, _: Any) -> Any:
            heard = io_callback(note, shape, w, ordered=True)
            return c + jnp.sin(heard) + draw(w) + lax.optimization_barrier(w), None

        return lax.scan(body, w, length=3)[0]

    graph = optimised(f, ONE, passes=PASS)
    assert outside(graph) == ["scan"]
    jax.jit(to_callable(graph))(ONE)
    jax.effects_barrier()
    assert calls == [1.0, 1.0, 1.0]


def test_references_stay() -> None:
    def f(x: Any) -> Any:
        ref = jax.new_ref(x)

        def body(i: Any, total: Any) -> Any:
            ref[0] += 1.0
            return total + ref[0] * jnp.sin(x[0])

        return lax.fori_loop(0, 3, body, ONE), ref[...]

    graph = optimised(f, X, passes=PASS)
    for got, want in zip(jax.jit(to_callable(graph))(X), jax.jit(f)(X), strict=True):
        np.testing.assert_allclose(got, want)


def test_what_may_never_end_stays_in_a_loop_that_may_not_run() -> None:
    def f(step: Any, x: Any) -> Any:
        def countdown() -> Any:  # ends only for a positive step
            return lax.while_loop(lambda v: v > 0.0, lambda v: v - step, ONE)

        return lax.while_loop(
            lambda s: (s[0] < 3) & (step > 0), lambda s: (s[0] + 1, s[1] + countdown()), (0, x)
        )[1]

    graph = optimised(f, ONE, ONE, passes=PASS)
    assert ops(graph).count("while") == 2 and outside(graph).count("while") == 1

    def sure(step: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            return c + x * lax.while_loop(lambda v: v > 0.0, lambda v: v - step, ONE), None

        return lax.scan(body, step, xs)[0]

    assert outside(optimised(sure, ONE, X, passes=PASS)) == ["while", "scan"]


def test_a_callback_that_may_fail_stays_in_a_loop_that_may_not_run() -> None:
    def f(n: Any, x: Any) -> Any:
        def heard() -> Any:
            return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), jnp.float32), x)

        looped = lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] + heard()), (0, x))[1]
        return lax.scan(lambda c, y: (c + y * heard(), None), looped, X)[0]

    assert outside(optimised(f, 0, ONE, passes=PASS)) == ["while", "pure_callback", "scan"]


def test_nothing_is_tidied_when_nothing_moves() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            jnp.sin(w)  # dead, and not this pass's business
            return c + x, None

        return lax.scan(body, ONE, xs)[0]

    assert_untouched(f, ONE, X, passes=PASS)


def test_checkpointed_loops_still_recompute() -> None:
    def f(w: Any, xs: Any) -> Any:
        step = jax.checkpoint(lambda c, x: c * jnp.sin(w) + jnp.sin(c * x))
        return lax.scan(lambda c, x: (step(c, x), None), w, xs)[0]

    graph = kept(f, ONE, X)
    assert outside(graph) == ["scan"]
    backward = optimised(jax.grad(f), ONE, X, passes=PASS)
    plain = optimised(jax.grad(f), ONE, X, passes="none")
    assert [op for op in ops(backward) if op.startswith("remat")] == [
        op for op in ops(plain) if op.startswith("remat")
    ]


def test_names_of_scopes_survive() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            with jax.named_scope("inner"):
                return c + jnp.sin(w) * x, None

        with jax.named_scope("outer"):
            return lax.scan(body, w, xs)[0]

    (moved,) = (node for node in optimised(f, ONE, X, passes=PASS) if node.op == "sin")
    assert moved.scope == "outer/inner"


@pytest.mark.parametrize("dtype", ["bfloat16", "int32", "complex64"])
def test_dtypes_and_reverse(dtype: str) -> None:
    def f(w: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (c * x + w * w, c), w, xs, reverse=True, unroll=2)

    x = jnp.asarray([0, 1, 1]).astype(dtype)
    assert outside(kept(f, x[0], x, grad=False))[-2:] == ["mul", "scan"]


def test_symbolic_shapes_step_aside() -> None:
    (n,) = jax.export.symbolic_shape("n")

    def f(w: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (c + jnp.sin(w) * x, None), w, xs)[0]

    shape = jax.ShapeDtypeStruct((n,), jnp.float32)
    graph = assert_untouched(f, shape, X, passes=PASS)
    exported = jax.export.export(jax.jit(to_callable(graph)))(shape, X)
    np.testing.assert_allclose(exported.call(X, X)[0], f(X, X), rtol=1e-6)

    unknown_length = optimised(f, ONE, shape, passes=PASS)
    assert outside(unknown_length) == ["sin", "scan"]


def test_single_applications_can_be_forbidden() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            inner = lax.scan(lambda d, y: (d * jnp.cos(w) + y * jnp.sum(jnp.tan(x)), None), c, xs)[0]
            return inner * jnp.sin(w) + jnp.sin(jnp.sin(w)), None

        return lax.scan(body, w, xs)[0]

    assert assert_every_gate(f, ONE, X, passes=PASS) >= 5
