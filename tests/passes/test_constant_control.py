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
from tests.passes._golden import MATRIX, ONE, X, assert_every_gate, assert_text, assert_untouched, ops

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


def trips(low: int, high: int) -> Any:
    """A loop from `low` to `high`, which JAX does not know when it traces it."""

    def f(x: Any) -> Any:
        bounds = jnp.asarray(low), jnp.asarray(high)
        return lax.fori_loop(*bounds, lambda i, v: jnp.sin(v) + i, x)

    return f


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
