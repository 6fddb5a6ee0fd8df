"""Inlining: which calls are written into their callers, and what comes with them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lepton_jax.ir import to_callable
from tests.passes._check import fired, optimised, same
from tests.passes._golden import ONE, X, assert_every_gate, assert_text, assert_untouched, ops

kept = partial(same, passes="inline", level="exact")


def chain(length: int) -> Any:
    """A jitted function of so many equations."""

    def f(x: Any) -> Any:
        for _ in range(length):
            x = jnp.sin(x)
        return x

    return jax.jit(f)


def test_call_is_written_out() -> None:
    def f(p: Any, x: Any, y: Any) -> Any:
        return jnp.where(p, x, y)

    assert_text(
        kept(f, X > 0, X, X),
        """
        graph f(%0: bool[3], %1: f32[3], %2: f32[3]) {
          %3: f32[3] = select_n %0 %2 %1
          return %3
        }
        """,
    )


def test_results_that_are_arguments_constants_or_given_twice() -> None:
    table = np.arange(3.0, dtype=np.float32)

    @jax.jit
    def mixed(x: Any, y: Any) -> Any:
        z = x * table
        return y, z, z, x, jnp.float32(2.0)

    graph = kept(lambda x, y: mixed(x, y), X, X + 1)
    assert ops(graph) == ["mul"]
    assert [graph.inputs.index(v) for v in graph.outputs if v in graph.inputs] == [1, 0]


def test_calls_in_calls_and_in_loops() -> None:
    inner = chain(2)
    outer = jax.jit(lambda x: inner(x) + inner(x * 2))

    def f(x: Any) -> Any:
        looped = lax.scan(lambda c, y: (outer(c) * y, inner(y)), x, X)
        return looped, lax.cond(x[0] > 0, outer, inner, x), jax.checkpoint(lambda v: outer(v))(x)

    graph = kept(f, X)
    assert "jit" not in ops(graph)


def test_large_functions_with_one_caller() -> None:
    big = chain(100)

    graph = kept(lambda x: big(x), X)
    assert ops(graph) == ["sin"] * 100


def test_large_functions_with_several_callers_stay_shared() -> None:
    big = chain(31)

    def f(x: Any) -> Any:
        return big(x) + big(x + 1)

    assert_untouched(f, X, passes="inline")
    assert ops(optimised(f, X, passes="inline{limit=31}")).count("sin") == 62
    small = chain(30)
    assert ops(kept(lambda x: small(x) + small(x + 1), X)).count("sin") == 60


def test_functions_become_small_before_they_are_judged() -> None:
    small = chain(4)
    middle = jax.jit(lambda x: small(small(x)) + 1)  # 9 equations once written out

    def f(x: Any) -> Any:
        return middle(x) + middle(x * 2)

    assert "jit" not in ops(optimised(f, X, passes="inline{limit=9}"))
    names = ops(optimised(f, X, passes="inline{limit=8}"))
    assert names.count("jit") == 2 and names.count("sin") == 8


def test_growth_is_limited() -> None:
    small = chain(10)

    def f(x: Any) -> Any:
        return [small(x + i) for i in range(5)]

    graph = optimised(f, X, passes="inline{growth=25}")
    assert [node.op for node in graph].count("jit") == 3
    assert [node.op for node in graph].count("sin") == 20


def test_growth_counts_only_what_is_copied() -> None:
    single = chain(50)

    assert "jit" not in ops(optimised(lambda x: single(x) * 2, X, passes="inline{growth=0}"))


def test_calls_with_shardings_or_donation_stay() -> None:
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    placed = jax.jit(jnp.sin, out_shardings=NamedSharding(mesh, P("i")))
    donating = jax.jit(jnp.cos, donate_argnums=0)

    assert_untouched(lambda x: placed(x) + donating(x), X, passes="inline")


def test_custom_derivatives_are_not_looked_into() -> None:
    @jax.custom_jvp
    def odd(x: Any) -> Any:
        return chain(2)(x)

    odd.defjvp(lambda p, t: (odd(*p), t[0] * 7))

    @jax.custom_vjp
    def strange(x: Any) -> Any:
        return chain(3)(x)

    strange.defvjp(lambda x: (strange(x), None), lambda _, ct: (ct * 9,))

    graph = assert_untouched(lambda x: odd(x) + strange(x), X, passes="inline")
    flat = to_callable(graph)
    np.testing.assert_array_equal(jax.grad(lambda x: flat(x)[0].sum())(X), np.full(3, 16.0))


def test_in_shard_map() -> None:
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))

    def f(x: Any) -> Any:
        return jax.shard_map(chain(2), mesh=mesh, in_specs=P("i"), out_specs=P("i"))(x)

    assert ops(kept(f, X)) == ["shard_map", "sin", "sin"]


def test_names_of_functions_and_scopes_survive() -> None:
    @jax.jit
    def block(x: Any) -> Any:
        with jax.named_scope("inner"):
            return jnp.sin(x)

    def f(x: Any) -> Any:
        with jax.named_scope("outer"):
            return block(x)

    (node,) = optimised(f, X, passes="inline")
    assert node.scope == "outer/jit(block)/inner"


def test_effects_stay_in_order() -> None:
    calls: list[float] = []

    @jax.jit
    def speak(x: Any) -> Any:
        io_callback(lambda v: calls.append(float(v)), None, x, ordered=True)
        return x + 1

    graph = optimised(lambda x: speak(speak(speak(x))), ONE, passes="inline")
    assert "jit" not in ops(graph)
    jax.jit(to_callable(graph))(ONE)
    jax.effects_barrier()
    assert calls == [1.0, 2.0, 3.0]


def test_references_are_handed_on() -> None:
    @jax.jit
    def double(ref: Any) -> None:
        ref[...] = ref[...] * 2

    def f(x: Any) -> Any:
        ref = jax.new_ref(x)
        double(ref)
        double(ref)
        return ref[...]

    graph = optimised(f, X, passes="inline")
    np.testing.assert_allclose(jax.jit(to_callable(graph))(X)[0], X * 4)


def test_deep_nests() -> None:
    def around(inner: Any) -> Any:
        return jax.jit(lambda x: inner(x) * 2)

    f = chain(1)
    for _ in range(40):
        f = around(f)

    assert ops(optimised(f, X, passes="inline")) == ["sin"] + ["mul"] * 40


def test_a_function_that_was_inlined_has_no_callers_left() -> None:
    shared = chain(40)
    pair = jax.jit(lambda x: shared(x) + shared(x * 2))

    graph = optimised(lambda x: pair(x) - pair(x + 1), X, passes="inline")
    calls = [node for node in graph if node.op == "jit"]
    assert len(calls) == 4 and len({node.regions[0] for node in calls}) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "int32", "complex64"])
def test_dtypes_and_no_elements(dtype: str) -> None:
    square = jax.jit(lambda x: x * x)

    for x in (jnp.asarray([0, 1, 1]).astype(dtype), jnp.zeros((0, 2), dtype)):
        assert ops(kept(lambda x: square(x) + square(x + x), x)).count("mul") == 2


def test_symbolic_shapes() -> None:
    (n,) = jax.export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n,), jnp.float32)

    graph = optimised(lambda x: chain(2)(x) + 1, shape, passes="inline")
    assert ops(graph) == ["sin", "sin", "add"]
    exported = jax.export.export(jax.jit(to_callable(graph)))(shape)
    np.testing.assert_allclose(exported.call(X)[0], jnp.sin(jnp.sin(X)) + 1)


def test_single_applications_can_be_forbidden() -> None:
    inner = chain(2)
    outer = jax.jit(lambda x: inner(x) + inner(x * 2))

    def f(x: Any) -> Any:
        return outer(x), outer(x + 1), lax.scan(lambda c, y: (inner(c) * y, None), x, X)[0]

    calls = fired(f, X, passes="inline")["inline-call"]
    assert assert_every_gate(f, X, passes="inline") == calls
