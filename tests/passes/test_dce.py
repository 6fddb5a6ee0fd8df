"""Dead code elimination: what goes, what stays, and through which interfaces."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import to_callable
from tests.passes._check import fired, optimised, same
from tests.passes._golden import ONE, X, assert_every_gate, assert_text, assert_untouched, ops

kept = partial(same, passes="dce", level="exact")


def test_dead_chain() -> None:
    def f(x: Any, y: Any) -> Any:
        jnp.cos(jnp.sin(y))
        return x + 1

    assert_text(
        kept(f, X, X),
        """
        graph f(%0: f32[3], %1: f32[3]) {
          %2: f32[3] = add %0 1.0
          return %2
        }
        """,
    )
    assert fired(f, X, X, passes="dce") == {"dead-node": 2}


def test_inputs_and_constants_may_be_returned() -> None:
    def f(x: Any, y: Any) -> Any:
        jnp.sin(y)
        return y, x, y, jnp.float32(2.0)

    assert_text(
        kept(f, X, ONE),
        """
        graph f(%0: f32[3], %1: f32[]) {
          return %1, %0, %1, 2.0
        }
        """,
    )


def test_nothing_to_do_leaves_the_program_verbatim() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            return c + x * w, jnp.sin(c)

        carry, ys = lax.scan(body, ONE, xs)
        return lax.cond(carry > 0, lambda y: y + w, lambda y: y, ys)

    assert_untouched(f, ONE, X, passes="dce")


# Branches, calls, checkpoints


def test_cond_loses_results_and_arguments() -> None:
    def f(i: Any, x: Any, y: Any) -> Any:
        branches = [lambda a, b: (a, b), lambda a, b: (a * 2, b * 2), lambda a, b: (jnp.sin(a), b + a)]
        return lax.switch(i, branches, x, y)[0]

    graph = kept(f, 2, X, X)
    (switch,) = (node for node in graph if node.op == "cond")
    assert len(switch.operands) == 2
    assert [len(branch.outputs) for branch in switch.regions] == [1, 1, 1]


def test_cond_keeps_an_argument_that_one_branch_reads() -> None:
    def f(p: Any, x: Any, y: Any) -> Any:
        return lax.cond(p, lambda a, b: a, lambda a, b: a + b, x, y)

    assert_untouched(f, True, X, X, passes="dce")


@jax.jit
def wide(x: Any, y: Any) -> Any:
    return jnp.sin(x), jnp.cos(y) * 2


def test_call_with_one_caller_loses_results_and_arguments() -> None:
    def f(x: Any, y: Any) -> Any:
        return wide(x, y)[0]

    assert_text(
        kept(f, X, X),
        """
        graph f(%0: f32[3], %1: f32[3]) {
          %2: f32[3] = jit[name='wide'] %0 {
            region wide(%0: f32[3]) {
              %1: f32[3] = sin[accuracy=None] %0
              return %1
            }
          }
          return %2
        }
        """,
    )


def test_call_with_two_callers_keeps_its_interface() -> None:
    def f(x: Any, y: Any) -> Any:
        return wide(x, y)[0] + wide(y, x)[0]

    assert_untouched(f, X, X, passes="dce")


def test_call_that_loses_a_caller_is_looked_at_again() -> None:
    def f(x: Any, y: Any) -> Any:
        wide(y, x)
        return wide(x, y)[0]

    graph = kept(f, X, X)
    assert ops(graph) == ["jit", "sin"]
    assert fired(f, X, X, passes="dce") == {"dead-node": 1, "dead-slot": 1}


def test_call_that_is_more_than_a_call_keeps_its_interface() -> None:
    donating = jax.jit(lambda x, y: (jnp.sin(x), jnp.cos(y)), donate_argnums=1)

    assert_untouched(lambda x, y: donating(x, y)[0], X, X, passes="dce")


def test_checkpoint_still_recomputes() -> None:
    def f(x: Any, y: Any) -> Any:
        return jax.checkpoint(lambda a, b: (jnp.sin(jnp.sin(a)), jnp.cos(b)))(x, y)[0]

    graph = kept(f, X, X)
    assert ops(graph) == ["remat2", "sin", "sin"] or ops(graph) == ["checkpoint", "sin", "sin"]
    flat = to_callable(graph)
    forward, backward = str(jax.make_jaxpr(jax.grad(lambda x: flat(x, X)[0].sum()))(X)).split(
        "differentiated=True"
    )
    assert (forward.count(" sin "), backward.count(" sin ")) == (2, 1)


# Other ways in


@pytest.mark.parametrize("dtype", ["bfloat16", "int32", "bool", "complex64", "uint8"])
def test_dtypes(dtype: str) -> None:
    def f(x: Any) -> Any:
        def body(carry: Any, y: Any) -> Any:
            return (jnp.where(carry[0] == y, y, carry[0]), jnp.where(y == y, carry[1], y)), carry[1]

        return lax.scan(body, (x[0], x[1]), x)[0][0]

    graph = kept(f, jnp.asarray([0, 1, 1]).astype(dtype), grad=False)
    assert next(node for node in graph if node.op == "scan").params["num_carry"] == 1


def test_symbolic_shapes() -> None:
    (n,) = jax.export.symbolic_shape("n")

    def f(x: Any, w: Any) -> Any:
        def body(carry: Any, y: Any) -> Any:
            return (carry[0] + y, carry[1] * jnp.sin(w)), jnp.cos(y)

        return lax.scan(body, (ONE, w), x)[0][0]

    graph = optimised(f, jax.ShapeDtypeStruct((n,), jnp.float32), ONE, passes="dce")
    assert ops(graph) == ["scan", "add"]
    exported = jax.export.export(jax.jit(to_callable(graph)))(jax.ShapeDtypeStruct((n,), jnp.float32), ONE)
    np.testing.assert_allclose(exported.call(X, ONE)[0], f(X, ONE))


def test_single_applications_can_be_forbidden() -> None:
    def f(w: Any, x: Any) -> Any:
        def inner(state: Any, y: Any) -> Any:
            jnp.tan(y)
            return (state[0] + y, state[1] * y), jnp.cos(w)

        def body(state: Any, y: Any) -> Any:
            jnp.exp(y)
            return lax.scan(inner, state, x)[0], lax.cond(y > 0, lambda: (y, w), lambda: (w, y))[0]

        wide(x, jnp.sin(w))
        state, ys = lax.scan(body, (ONE, jnp.sin(w)), x)
        return state[0], wide(ys, x)[1]

    assert assert_every_gate(f, ONE, X, passes="dce") >= 4
