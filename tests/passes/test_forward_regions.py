"""Constants, arguments and effects that pass through loops, branches and calls."""

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
from tests.passes._check import optimised, same
from tests.passes._golden import ONE, X, assert_every_gate, assert_text, assert_untouched, ops
from tests.passes._loops import handed_on

kept = partial(same, passes="forward", level="exact")


# Scalar constants move into the region


def test_scalar_constants_move_into_regions() -> None:
    def f(p: Any, x: Any) -> Any:
        chosen = lax.cond(p, lambda v, s: v * s, lambda v, s: v + s, x, 2.0)
        called = jax.jit(lambda v, s: v * s)(x, 3.0)
        return chosen, called

    graph = kept(f, True, X)
    assert [len(node.operands) for node in graph if node.regions] == [2, 1]
    (call,) = (node for node in graph if node.op == "jit")
    assert [str(value.const) for value in next(iter(call.regions[0])).operands if value.is_const] == ["3.0"]


def test_constants_of_a_shared_function_stay_outside() -> None:
    def f(x: Any) -> Any:
        scaled = jax.jit(lambda v, s: v * s)
        return scaled(x, 2.0), scaled(x, 3.0)

    assert_untouched(f, X, passes="forward")


def test_arrays_stay_outside() -> None:
    table = np.arange(3.0, dtype=np.float32)

    def f(x: Any) -> Any:
        return jax.jit(lambda v, t: v * t)(x, table)

    assert_untouched(f, X, passes="forward")


# A call's or a branch's result that is an argument is that argument


def test_results_that_are_arguments() -> None:
    shared = jax.jit(lambda a, b: (b, a + b, a))

    def f(p: Any, x: Any, y: Any) -> Any:
        one, _, _ = shared(x, y)
        _, _, two = shared(y, x)
        chosen = lax.cond(p, lambda a, b: (b, a + b), lambda a, b: (b, a), x, y)
        again = jax.checkpoint(lambda a: (a, jnp.sin(a)))(x)
        return one, two, chosen, again

    graph = kept(f, True, X, X)
    one, two, first, second, again, _ = graph.outputs
    _, x, y = graph.inputs
    assert [one, two, first, again] == [y, y, y, x]
    assert second.op == "cond"


def test_a_result_that_is_another_argument_in_each_branch_stays() -> None:
    def f(p: Any, x: Any, y: Any) -> Any:
        return lax.cond(p, lambda a, b: a, lambda a, b: b, x, y)

    assert_untouched(f, True, X, X, passes="forward")


def test_a_result_that_is_a_constant() -> None:
    def f(p: Any, x: Any) -> Any:
        called = jax.jit(lambda v: (v + 1, jnp.float32(2.0)))(x)
        return called, lax.cond(p, lambda v: (v, 1.0), lambda v: (v * 2, 1.0), x)[1]

    graph = kept(f, True, X)
    assert graph.outputs[1].is_const
    assert graph.outputs[2].op == "cond"


def test_a_call_that_places_its_result_elsewhere_stays() -> None:
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    placed = jax.jit(lambda v: v, out_shardings=NamedSharding(mesh, P("i")))

    assert_untouched(lambda x: placed(x), X, passes="forward")


def test_custom_derivatives_keep_their_results() -> None:
    @jax.custom_jvp
    def straight(x: Any) -> Any:
        return x

    straight.defjvp(lambda p, t: (straight(*p), t[0] * 7))

    graph = assert_untouched(lambda x: straight(x) * 1, X, passes="forward")
    flat = to_callable(graph)
    np.testing.assert_array_equal(jax.grad(lambda x: flat(x)[0].sum())(X), np.full(3, 7.0))


def test_shard_map_and_linear_solve_keep_their_results() -> None:
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))

    def f(x: Any) -> Any:
        solved = lax.custom_linear_solve(lambda v: v, x, lambda _, b: b, symmetric=True)
        return jax.shard_map(lambda v: (v, v), mesh=mesh, in_specs=P("i"), out_specs=P("i"))(x), solved

    assert_untouched(f, X, passes="forward")


# Through several regions


def test_what_passes_through_one_region_passes_through_all() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            a, total = carry
            a, _ = handed_on(a)
            (a, total), kept = lax.scan(lambda c, y: ((handed_on(c[0])[0], c[1] + y), c[0]), (a, total), xs)
            return (a, total * x), kept

        return lax.scan(body, (w, ONE), xs)

    graph = same(f, ONE, X, passes="forward,dce", level="exact")
    assert graph.outputs[0] is graph.inputs[0]
    assert [node.params["num_carry"] for node in graph.walk() if node.op == "scan"] == [1, 1]
    assert "jit" not in ops(graph)


def test_effects_stay_in_order() -> None:
    calls: list[float] = []

    def note(x: Any) -> None:
        calls.append(float(x))

    def f(w: Any) -> Any:
        def body(carry: Any, _: Any) -> Any:
            a, b = carry
            io_callback(note, None, b, ordered=True)
            return (handed_on(a)[0], b + a), a

        return lax.scan(body, (w, w), length=3)

    graph = optimised(f, ONE, passes="forward")
    jax.jit(to_callable(graph))(ONE)
    jax.effects_barrier()
    assert calls == [1.0, 2.0, 3.0]
    assert graph.outputs[0] is graph.inputs[0]


def test_references_pass() -> None:
    def f(x: Any) -> Any:
        ref = jax.new_ref(x)

        def body(i: Any, w: Any) -> Any:
            ref[i] = ref[i] * w
            return w

        lax.fori_loop(0, 3, body, x[2])
        return ref[...]

    graph = optimised(f, X, passes="forward,dce")
    np.testing.assert_array_equal(jax.jit(to_callable(graph))(X)[0], jax.jit(f)(X))


@pytest.mark.parametrize("dtype", ["bfloat16", "int32", "bool", "complex64"])
def test_dtypes(dtype: str) -> None:
    def f(x: Any) -> Any:
        return lax.scan(lambda c, y: ((handed_on(c[0])[0], y), (y, c[0])), (x[0], x[1]), x)

    graph = kept(f, jnp.asarray([0, 1, 1]).astype(dtype), grad=False)
    assert graph.outputs[2] is graph.inputs[0]


def test_symbolic_shapes() -> None:
    (n,) = jax.export.symbolic_shape("n")

    def f(x: Any, w: Any) -> Any:
        return lax.scan(lambda c, y: ((handed_on(c[0])[0], c[1] + y * c[0]), (w, y)), (w, ONE), x)

    shape = jax.ShapeDtypeStruct((n,), jnp.float32)
    graph = optimised(f, shape, ONE, passes="forward")
    assert graph.outputs[0] is graph.inputs[1] and graph.outputs[3] is graph.inputs[0]
    exported = jax.export.export(jax.jit(to_callable(graph)))(shape, ONE)
    for got, want in zip(exported.call(X, ONE), jax.tree.leaves(f(X, ONE)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_single_applications_can_be_forbidden() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            a, b, c = carry
            v = handed_on(a)[0] * x
            return (handed_on(a)[0], v, v), (x, a, b, c)

        looped = lax.scan(body, (w, ONE, ONE), xs)
        return looped, lax.cond(w > 0, lambda u, v, s: (u, u + v * s), lambda u, v, s: (v, u), w, w, 2.0)

    assert assert_every_gate(f, ONE, X, passes="forward") >= 8


def test_a_constant_array_comes_out_of_a_call() -> None:
    """Found by the fuzzer: fold leaves it as the result of a checkpoint."""

    def f(x: Any) -> Any:
        return jax.checkpoint(lambda x: (x * 2, jnp.ones((1,), jnp.float32)))(x)

    assert_text(
        optimised(f, X, passes="fold,forward,dce"),
        """
        graph f(%0: f32[3]) {
          %1: f32[3] = remat2[differentiated=False prevent_cse=True] %0 {
            region body(%0: f32[3]) {
              %1: f32[3] = mul %0 2.0
              return %1
            }
          }
          return %1, const<f32[1]>
        }
        """,
    )
