"""Common subexpressions: what is the same, what only looks the same, and what regions read from outside."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lepton_jax.ir import to_callable
from tests.passes._check import fired, optimised, same
from tests.passes._golden import MATRIX, ONE, X, assert_every_gate, assert_text, assert_untouched, ops

kept = partial(same, passes="cse", level="exact")


def test_equal_nodes() -> None:
    def f(x: Any) -> Any:
        return jnp.sin(x) + jnp.sin(x) * jnp.cos(jnp.sin(x))

    assert_text(
        kept(f, X),
        """
        graph f(%0: f32[3]) {
          %1: f32[3] = sin[accuracy=None] %0
          %2: f32[3] = cos[accuracy=None] %1
          %3: f32[3] = mul %1 %2
          %4: f32[3] = add %1 %3
          return %4
        }
        """,
    )


def test_operands_of_commutative_operations_in_either_order() -> None:
    def f(x: Any, y: Any) -> Any:
        pairs = [
            (x * y, y * x),
            (x + y, y + x),
            (jnp.maximum(x, y), jnp.maximum(y, x)),
            (jnp.minimum(x, y), jnp.minimum(y, x)),
            (x == y, y == x),
            (x != y, y != x),
        ]
        return pairs, (x > 0) & (y > 0), (y > 0) & (x > 0)

    graph = kept(f, X, X + 1)
    assert sorted(ops(graph)) == sorted(["mul", "add", "max", "min", "eq", "ne", "gt", "gt", "and"])


def test_order_matters_elsewhere() -> None:
    def f(x: Any, y: Any) -> Any:
        return (
            x - y,
            y - x,
            x / y,
            y / x,
            x < y,
            y < x,
            lax.atan2(x, y),
            lax.atan2(y, x),
            MATRIX @ x,
            x @ MATRIX,
        )

    assert_untouched(f, X, X + 1, passes="cse")


def test_literals_are_compared_by_type_and_bits() -> None:
    def f(x: Any) -> Any:
        return x * 2, x * 2.0, x * jnp.float32(2.0), x + 0.0, x + -0.0

    assert ops(kept(f, X)) == ["mul", "add", "add"]

    def g(i: Any) -> Any:
        return lax.convert_element_type(i, "float32") * 2, i * 2, i.astype("int8") * jnp.int8(2)

    assert_untouched(g, jnp.arange(3), passes="cse")


def test_parameters_must_be_equal() -> None:
    def f(x: Any) -> Any:
        return (
            x.reshape(9),
            x.reshape(1, 9),
            x.sum(0),
            x.sum(1),
            x.astype("bfloat16"),
            x.astype("float16"),
            x.T,
        )

    assert_untouched(f, MATRIX, passes="cse")


def test_big_constants_are_compared_by_identity() -> None:
    table = np.arange(3.0, dtype=np.float32)

    def f(x: Any) -> Any:
        return x + table, x + table, x + np.arange(3.0, dtype=np.float32)

    assert ops(kept(f, X)) == ["add", "add"]


def test_nodes_with_many_results() -> None:
    def f(x: Any) -> Any:
        values, indices = lax.top_k(x, 2)
        again, _ = lax.top_k(x, 2)
        return values, indices, again, lax.top_k(x, 1)

    graph = kept(f, X)
    assert ops(graph) == ["top_k", "top_k"]
    assert graph.outputs[0] is graph.outputs[2]


# Regions


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


# What is meant to run twice


def test_effects_run_as_often_as_written() -> None:
    calls: list[float] = []
    shape = jax.ShapeDtypeStruct((), jnp.float32)

    def note(x: Any) -> Any:
        calls.append(float(x))
        return np.float32(x)

    def f(x: Any) -> Any:
        def body(c: Any, _: Any) -> Any:
            return c + io_callback(note, shape, x, ordered=True) + jnp.sin(x) - jnp.sin(x), None

        once = io_callback(note, shape, x, ordered=True)
        again = io_callback(note, shape, x, ordered=True)
        return once, again, lax.scan(body, x, length=2)[0], lax.scan(body, x, length=2)[0]

    graph = optimised(f, ONE, passes="cse")
    jax.jit(to_callable(graph))(ONE)
    jax.effects_barrier()
    assert len(calls) == 6
    assert ops(graph).count("sin") == 2


def test_references_are_each_their_own() -> None:
    def f(x: Any) -> Any:
        a, b = jax.new_ref(x), jax.new_ref(x)
        before = a[...]
        a[0] = 5.0
        return before, a[...], b[...], a[...]

    graph = assert_untouched(f, X, passes="cse")
    for got, want in zip(jax.jit(to_callable(graph))(X), jax.jit(f)(X), strict=True):
        np.testing.assert_array_equal(got, want)


def test_draws_from_a_hidden_state_stay_apart() -> None:
    draw = jax.jit(lambda x: lax.rng_uniform(0.0, x, (3,)))

    def f(x: Any) -> Any:
        def body(c: Any, _: Any) -> Any:
            return c + draw(x).sum(), None

        loops = lax.scan(body, x, length=2)[0], lax.scan(body, x, length=2)[0]
        return lax.rng_uniform(0.0, x, (3,)), lax.rng_uniform(0.0, x, (3,)), draw(x), draw(x), loops

    assert_untouched(f, ONE, passes="cse")


def test_keys_determine_their_numbers() -> None:
    def f(seed: Any) -> Any:
        key = jax.random.key(seed)
        first, second = jax.random.split(key)
        drawn = [jax.random.bits(k, (3,)) for k in (first, second, first)]
        return drawn, jax.random.key_data(jax.random.split(key)[1])

    graph = kept(f, jnp.uint32(7))
    assert ops(graph).count("random_bits") == 2 and ops(graph).count("random_split") == 1


def test_optimization_barriers_stay() -> None:
    guarded = jax.jit(lambda x: lax.optimization_barrier(x) * 2)

    def f(x: Any) -> Any:
        return lax.optimization_barrier(x), lax.optimization_barrier(x), guarded(x), guarded(x)

    assert_untouched(f, X, passes="cse")


def test_contexts_must_be_equal() -> None:
    def f(x: Any) -> Any:
        with jax.named_scope("a name is no context"):
            plain = jnp.sin(x)
        with set_xla_metadata(kind="special"):
            special = jnp.sin(x)
        return plain, special, jnp.sin(x)

    graph = kept(f, X)
    assert ops(graph) == ["sin", "sin"]
    assert graph.outputs[0] is graph.outputs[2]


def test_recomputation_stays() -> None:
    def f(x: Any) -> Any:
        waves = jax.checkpoint(lambda v: jnp.sin(jnp.sin(v)) + jnp.sin(jnp.sin(v)))
        return jax.grad(lambda v: jnp.sum(waves(v)))(x), jnp.sin(x), jnp.sin(jnp.sin(x))

    graph = optimised(f, X, passes="cse,dce")
    (remat,) = (node for node in graph if node.regions)
    inside = [node.op for node in remat.regions[0]]
    plain = next(node for node in optimised(f, X, passes="none") if node.regions)
    assert inside == [node.op for node in plain.regions[0]]
    assert [node.op for node in graph].count("sin") == 2


def test_checkpoints_not_yet_differentiated_read_nothing_from_outside() -> None:
    def f(x: Any) -> Any:
        return jnp.sin(x), jax.checkpoint(lambda v: jnp.sin(v) * jnp.cos(jnp.sin(v)))(x)

    graph = kept(f, X)
    assert ops(graph).count("sin") == 2


def test_custom_derivatives_keep_their_rules() -> None:
    @jax.custom_vjp
    def odd(x: Any) -> Any:
        return jnp.sin(x) + jnp.sin(x)

    odd.defvjp(lambda x: (odd(x), x), lambda x, ct: (ct * 7 * x,))

    def f(x: Any) -> Any:
        return jnp.sin(x) * odd(x)

    graph = kept(f, X)
    assert ops(graph).count("sin") == 2  # the function may not read from outside: its rule would not know
    flat = to_callable(graph)
    np.testing.assert_allclose(
        jax.grad(lambda x: flat(x)[0].sum())(X), jnp.cos(X) * 2 * jnp.sin(X) + jnp.sin(X) * 7 * X, rtol=1e-6
    )


def test_shard_map_reads_nothing_from_outside() -> None:
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))

    def f(x: Any) -> Any:
        def shard(v: Any) -> Any:
            return jnp.sin(v) + jnp.sin(v)

        return jnp.sin(x), jax.shard_map(shard, mesh=mesh, in_specs=P("i"), out_specs=P("i"))(x)

    assert ops(kept(f, X)) == ["sin", "shard_map", "sin", "add"]


# Other ways in


@pytest.mark.parametrize("dtype", ["bfloat16", "int32", "bool", "complex64"])
def test_dtypes_and_no_elements(dtype: str) -> None:
    def f(x: Any) -> Any:
        return jnp.where(x == x, x, ~x if x.dtype == bool else -x), jnp.where(x == x, x, x)

    for x in (jnp.asarray([0, 1, 1]).astype(dtype), jnp.zeros((0, 2), dtype)):
        assert ops(kept(f, x)).count("eq") == 1


def test_symbolic_shapes() -> None:
    (n,) = jax.export.symbolic_shape("n")

    def f(x: Any) -> Any:
        total, _ = lax.scan(lambda c, y: (c + y * jnp.sin(x).sum(), None), ONE, x)
        return jnp.sin(x) + jnp.sin(x), total

    shape = jax.ShapeDtypeStruct((n,), jnp.float32)
    graph = optimised(f, shape, passes="cse")
    assert ops(graph).count("sin") == 2
    exported = jax.export.export(jax.jit(to_callable(graph)))(shape)
    for got, want in zip(exported.call(X), f(X), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_single_applications_can_be_forbidden() -> None:
    def f(w: Any, x: Any) -> Any:
        def body(c: Any, y: Any) -> Any:
            return c + jnp.sin(jnp.cos(w)) * jnp.sin(y) * jnp.sin(y), None

        wave = jnp.sin(jnp.cos(w)) + jnp.cos(w)
        return lax.scan(body, wave, x)[0], lax.scan(body, wave, x)[0]

    assert assert_every_gate(f, ONE, X, passes="cse") == 4
