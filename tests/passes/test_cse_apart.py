"""Common subexpressions: what is meant to run twice."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lepton_jax.ir import to_callable
from tests.passes._check import optimised, same
from tests.passes._golden import ONE, X, assert_untouched, ops

kept = partial(same, passes="cse", level="exact")


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
