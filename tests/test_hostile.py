"""Programs at the edge: deep, long, large, strange."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import PassManager, Pipeline
from lepton_jax.targets import get_target


def optimise(fun: Any, *args: Any, passes: str = "default") -> Graph:
    """The graph of a function after a pipeline, strictly."""
    manager = PassManager(Pipeline.parse(passes), get_target("cpu"), strict=True)
    return manager.run(jax.make_jaxpr(fun)(*args))[0]


def test_results_that_are_inputs_or_the_same_twice() -> None:
    def fun(x: Any, y: Any) -> Any:
        z = x + y
        return x, x, z, z, y * 1.0, 3, jnp.zeros(2)

    x, y = jnp.ones(2), jnp.full(2, 2.0)
    expected, result = jax.jit(fun)(x, y), lepton.optimize(fun)(x, y)
    for a, b in zip(expected, result, strict=True):
        np.testing.assert_array_equal(a, b)
    assert lepton.optimize(lambda: 1)() == 1
    assert lepton.optimize(lambda x: None)(x) is None


def test_a_chain_of_fifteen_thousand_equations() -> None:
    """Deeper than any stack; `benchmarks/overhead.py` measures 50,000."""

    def fun(x: Any) -> Any:
        for i in range(10_000):
            x = jnp.sin(x) if i % 2 else x * 1.0 + 0.5
        return x

    start = time.perf_counter()
    closed = jax.make_jaxpr(fun)(jnp.ones(2))
    traced = time.perf_counter() - start
    manager = PassManager(Pipeline.parse("default"), get_target("cpu"), strict=True)
    graph, report = manager.run(closed)
    assert report.equations_before >= 15_000 and graph.num_nodes() == 10_000
    jax.make_jaxpr(lepton.ir.to_callable(graph))(jnp.ones(2))
    assert report.pass_seconds < 20 * max(traced, 1.0)  # no quadratic step: that would be minutes


def test_wide_programs() -> None:
    def fun(*xs: Any) -> Any:
        return [x * 1.0 + 0.0 for x in xs], sum(xs)

    xs = [jnp.float32(i) for i in range(2_000)]
    graph = optimise(fun, *xs)
    assert len(graph.outputs) == 2_001


@pytest.mark.parametrize("kind", ["jit", "cond", "scan"])
def test_deep_nesting(kind: str) -> None:
    def nest(fun: Any) -> Any:
        if kind == "jit":
            return jax.jit(lambda x: fun(x) + 1.0)
        if kind == "cond":
            return lambda x: lax.cond(x.sum() > 0, fun, lambda v: v * 1.0, x)
        return lambda x: lax.scan(lambda c, _: (fun(c), None), x, None, length=2)[0]

    fun: Any = jnp.sin
    for _ in range(12):
        fun = nest(fun)
    x = jnp.ones(2)
    graph = optimise(fun, x)
    np.testing.assert_allclose(lepton.ir.to_callable(graph)(x)[0], fun(x), rtol=1e-5)


def test_shared_calls_do_not_explode() -> None:
    fun: Any = jnp.sin
    for _ in range(40):  # written out this is 2**40 sines

        def twice(x: Any, inner: Any = fun) -> Any:
            return inner(inner(x) * 2.0 + jnp.cos(x)) - jnp.tanh(x) * jnp.exp(-x)

        fun = jax.jit(twice)
    start = time.perf_counter()
    graph = optimise(fun, jnp.ones(()))
    assert graph.num_nodes() < 150_000
    assert time.perf_counter() - start < 60


def test_python_recursion_depth_is_not_needed() -> None:
    def fun(x: Any) -> Any:
        for _ in range(3_000):
            x = jnp.transpose(x + 0.5)
        return x

    limit = sys.getrecursionlimit()
    graph = optimise(fun, jnp.ones((2, 3)))
    assert sys.getrecursionlimit() == limit
    assert graph.num_nodes() <= 6_000


def test_large_closed_over_arrays_are_not_copied() -> None:
    big = jnp.ones((1000, 1000))
    graph = optimise(lambda x: x @ big * 1.0, jnp.ones((2, 1000)))
    constants = [v.const for node in graph for v in node.operands if v.is_const and v.ndim]
    assert len(constants) == 1 and constants[0] is big


def test_functions_are_let_go() -> None:
    def make() -> Any:
        big = jnp.ones(10)
        return lambda x: x + big

    fun = make()
    f = lepton.optimize(fun)
    f(jnp.ones(10))
    alive = weakref.ref(fun)
    del fun, f
    jax.clear_caches()
    gc.collect()
    assert alive() is None


def test_zero_size_arrays() -> None:
    def fun(x: Any, y: Any) -> Any:
        z = jnp.concatenate([x, y], axis=0)
        return z.sum(), z * 1.0, z @ z.T, lax.scan(lambda c, v: (c + v.sum(), v), 0.0, x)

    x, y = jnp.ones((0, 3)), jnp.ones((0, 3))
    expected, result = jax.jit(fun)(x, y), lepton.optimize(fun)(x, y)
    jax.tree.map(np.testing.assert_array_equal, expected, result)


def test_primitives_nobody_has_heard_of_get_through() -> None:
    from jax.experimental import pallas as pl

    def kernel(x_ref: Any, o_ref: Any) -> None:
        o_ref[...] = x_ref[...] * 2.0

    def fun(x: Any) -> Any:
        y = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x * 1.0)
        return y + 0.0

    x = jnp.arange(8.0)
    f = lepton.optimize(fun)
    np.testing.assert_array_equal(f(x), x * 2)
    assert any(node.op == "pallas_call" for node in f.trace(x).graph)


def test_mutable_references() -> None:
    def fun(x: Any) -> Any:
        ref = jax.new_ref(jnp.zeros_like(x))

        def body(i: Any, carry: Any) -> Any:
            ref[...] = ref[...] + x * 1.0
            return carry

        lax.fori_loop(0, 3, body, 0)
        first = ref[...]
        ref[...] = first * 2.0
        return first, ref[...]

    x = jnp.arange(3.0)
    for a, b in zip(jax.jit(fun)(x), lepton.optimize(fun)(x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_metadata_survives() -> None:
    from jax.experimental.xla_metadata import set_xla_metadata

    def fun(x: Any) -> Any:
        y = x * 1.0
        with set_xla_metadata(flavour="vanilla"):
            z = jnp.sin(y)
        return jnp.cos(z)

    assert "vanilla" in lepton.optimize(fun).lower(jnp.ones(2)).as_text()


def test_matmul_precision_is_kept() -> None:
    def fun(x: Any) -> Any:
        with jax.default_matmul_precision("float32"):
            return jnp.dot(jnp.transpose(jnp.transpose(x)), x)

    text = lepton.optimize(fun).trace(jnp.ones((3, 3))).graph.to_text()
    assert "HIGHEST" in text
