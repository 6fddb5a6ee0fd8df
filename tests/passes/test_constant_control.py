"""Branches and loops whose course is known."""

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
from tests.passes._check import fired, optimised, same
from tests.passes._golden import ONE, X, assert_every_gate, assert_text, assert_untouched, ops
from tests.passes._loops import trips

PASS = "constant-control"
kept = partial(same, passes=PASS, level="exact")


# Branches


def test_known_branch() -> None:
    def f(x: Any, y: Any) -> Any:
        return lax.switch(
            jnp.int32(1), [lambda a, b: (a, b), lambda a, b: (jnp.sin(b), a), lambda a, b: (a, a)], x, y
        )

    assert_text(
        same(f, X, X, passes="constant-control,dce", level="exact"),
        """
        graph f(%0: f32[3], %1: f32[3]) {
          %2: f32[3] = sin[accuracy=None] %1
          return %2, %0
        }
        """,
    )


@pytest.mark.parametrize("index", [-3, 0, 1, 2, 5])
def test_index_out_of_range_takes_the_nearest_branch(index: int) -> None:
    def f(x: Any) -> Any:
        return lax.switch(jnp.int32(index), [jnp.sin, jnp.cos, jnp.tan], x)

    graph = same(f, X, passes="constant-control,dce", level="exact")
    assert ops(graph) == [["sin", "cos", "tan"][min(max(index, 0), 2)]]


def test_predicate_known_from_facts() -> None:
    def f(i: Any, x: Any) -> Any:
        low = jnp.minimum(jnp.maximum(i, 0), 3)
        return lax.cond(low < 7, lambda v: v * 2, lambda v: jnp.sin(v), x)

    graph = same(f, 2, X, passes="constant-control,dce", level="exact")
    assert ops(graph) == ["mul"]


def test_unknown_predicates_stay() -> None:
    def f(p: Any, i: Any, x: Any) -> Any:
        low = jnp.minimum(jnp.maximum(i, 0), 3)
        first = lax.cond(p, lambda v: v * 2, lambda v: v * 3, x)
        return first, lax.cond(low < 3, lambda v: v * 2, lambda v: v * 3, x)

    assert_untouched(f, True, 2, X, passes=PASS)


def test_same_branches() -> None:
    def f(i: Any, x: Any, y: Any) -> Any:
        def body(a: Any, b: Any) -> Any:
            return jnp.sin(a) * 2 + b, a

        return lax.switch(i, [body, body, lambda a, b: (jnp.sin(a) * 2 + b, a)], x, y)

    graph = same(f, 1, X, X, passes="constant-control,dce", level="exact")
    assert ops(graph) == ["sin", "mul", "add"]
    assert fired(f, 1, X, X, passes=PASS) == {"same-branches": 1}


def test_branches_that_differ_in_one_thing() -> None:
    def f(p: Any, x: Any, y: Any) -> Any:
        sizes = lax.cond(p, lambda v: v * 2, lambda v: v * 2.5, x)
        order = lax.cond(p, lambda a, b: a - b, lambda a, b: b - a, x, y)
        which = lax.cond(p, lambda a, b: a, lambda a, b: b, x, y)
        axes = lax.cond(p, lambda m: m.sum(0), lambda m: m.sum(1), jnp.outer(x, y))
        return sizes, order, which, axes

    assert_untouched(f, True, X, X, passes=PASS)


def test_same_branches_with_effects_stay() -> None:
    def note(x: Any) -> None:
        raise AssertionError(f"not to be run: {x}")

    def f(p: Any, x: Any) -> Any:
        def branch(v: Any) -> Any:
            io_callback(note, None, v, ordered=True)
            return v

        return lax.cond(p, branch, branch, x)

    assert_untouched(f, True, X, passes=PASS)


def test_known_branch_with_effects_keeps_their_order() -> None:
    calls: list[str] = []

    def f(x: Any) -> Any:
        io_callback(lambda: calls.append("before"), None, ordered=True)

        def speak(v: Any) -> Any:
            io_callback(lambda: calls.append("first"), None, ordered=True)
            io_callback(lambda: calls.append("second"), None, ordered=True)
            return v

        y = lax.cond(jnp.bool_(True), speak, lambda v: v, x)
        io_callback(lambda: calls.append("after"), None, ordered=True)
        return y

    graph = optimised(f, X, passes=PASS)
    assert "cond" not in ops(graph)
    jax.jit(to_callable(graph))(X)
    jax.effects_barrier()
    assert calls == ["before", "first", "second", "after"]


# One in another


def test_what_comes_out_of_a_branch_is_looked_at_too() -> None:
    def f(x: Any) -> Any:
        def outer(v: Any) -> Any:
            inner = lax.cond(jnp.bool_(True), jnp.sin, jnp.cos, v)
            return lax.scan(lambda c, y: (trips(0, 1)(c) * y, None), inner, jnp.ones(1))[0]

        return lax.cond(jnp.bool_(False), jnp.tan, outer, x)

    graph = same(f, X, passes="inline,constant-control,dce", level="exact", grad=False)
    assert not {"cond", "scan", "while"} & set(ops(graph))
    assert fired(f, X, passes=PASS) == {"known-branch": 2, "one-trip-scan": 1, "one-trip-while": 1}


def test_in_loops_that_stay() -> None:
    def f(x: Any) -> Any:
        def body(c: Any, y: Any) -> Any:
            return lax.cond(jnp.bool_(True), lambda v: v * y, lambda v: v, c), None

        return lax.scan(body, x, X)[0]

    assert "cond" not in ops(kept(f, X))


def test_names_of_scopes_survive() -> None:
    def f(x: Any) -> Any:
        with jax.named_scope("outer"):

            def branch(v: Any) -> Any:
                with jax.named_scope("inner"):
                    return jnp.sin(v)

            return lax.cond(jnp.bool_(True), branch, lambda v: v, x)

    graph = optimised(f, X, passes=PASS)
    (node,) = (node for node in graph if node.op == "sin")
    assert node.scope == "outer/inner"


def test_loops_over_references_stay() -> None:
    def f(x: Any) -> Any:
        ref = jax.new_ref(x)

        def body(i: Any, _: Any) -> None:
            ref[i] = ref[i] * 2

        lax.fori_loop(0, 1, body, None)
        lax.cond(jnp.bool_(True), lambda: ref[...], lambda: ref[...] * 2)
        return ref[...]

    graph = optimised(f, X, passes=PASS)
    np.testing.assert_array_equal(jax.jit(to_callable(graph))(X)[0], jax.jit(f)(X))


def test_symbolic_shapes() -> None:
    (n,) = jax.export.symbolic_shape("n")

    def f(x: Any) -> Any:
        total, ys = lax.scan(lambda c, y: (c + y, c), ONE, x)
        once = lax.scan(lambda c, y: (c + y, c), x, x[None])[0]
        looped = trips(0, 1)(x)
        return total, ys, once, looped, lax.cond(jnp.bool_(True), jnp.sin, jnp.cos, x)

    shape = jax.ShapeDtypeStruct((n,), jnp.float32)
    graph = optimised(f, shape, passes=PASS)
    assert "cond" not in ops(graph) and ops(graph).count("scan") == 2
    exported = jax.export.export(jax.jit(to_callable(graph)))(shape)
    for got, want in zip(exported.call(X), f(X), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_single_applications_can_be_forbidden() -> None:
    def f(p: Any, x: Any) -> Any:
        looped = lax.scan(lambda c, y: (c + y, trips(1, 1)(c)), ONE, x[:1])
        nothing = lax.scan(lambda c, y: (c + y, c), ONE, x[:0])
        chosen = lax.cond(jnp.bool_(True), lambda v: lax.cond(p, jnp.sin, jnp.sin, v), jnp.cos, x)
        return looped, nothing, chosen, trips(0, 1)(x)

    assert assert_every_gate(f, True, X, passes=PASS) == 6


def test_more_is_known_of_what_a_chosen_branch_feeds() -> None:
    """Until a branch was chosen nothing was known of it; what reads it is looked at again."""

    def fun(x: Any) -> Any:
        small = lax.clamp(-1.0, x, 2.0)
        chosen = lax.switch(2, [lambda y: y * 2, lambda y: y + 1, lambda y: small], x)
        return jnp.nan_to_num(jnp.maximum(chosen, -100.0))

    text = same(fun, jnp.linspace(-3.0, 3.0, 5), passes="default").to_text()
    assert "max" not in text and text.count("select_n") == 1
