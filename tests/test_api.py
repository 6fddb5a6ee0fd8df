"""`lepton.optimize` behaves as `jax.jit` does: calls, arguments, results, stages."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from tests.api_programs import noisy


class Pair(NamedTuple):
    a: Any
    b: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["w"], meta_fields=["name"])
@dataclass
class Layer:
    w: Any
    name: str = "layer"


def test_decorator_forms() -> None:
    @lepton.optimize
    def plain(x: Any) -> Any:
        return noisy(x)

    @lepton.optimize("default,-cse")
    def with_text(x: Any) -> Any:
        return noisy(x)

    @lepton.optimize(passes="none", level="exact")
    def with_names(x: Any) -> Any:
        return noisy(x)

    x = jnp.arange(6.0).reshape(2, 3)
    for fun in (plain, with_text, with_names, lepton.optimize(noisy, "max")):
        np.testing.assert_allclose(fun(x), jax.jit(noisy)(x), rtol=1e-6)
    assert plain.report.equations_after < plain.report.equations_before
    assert "same-node" in plain.report.rules and "same-node" not in with_text.report.rules
    assert with_names.report.rules == {}
    assert plain.__name__ == "plain"


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="no level 'fast'; the levels are: exact, reassociate, approximate"):
        lepton.optimize(noisy, level="fast")
    with pytest.raises(ValueError, match="cpu"):
        lepton.optimize(noisy, target="abacus")
    with pytest.raises(lepton.PipelineError, match=r"no pass or preset 'defualt'; presets: none"):
        lepton.optimize(noisy, "defualt")
    with pytest.raises(TypeError, match="expects a function, not int"):
        lepton.optimize(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="Pipeline, not int"):
        lepton.optimize(noisy, 3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="passes given twice"):
        lepton.optimize("default", passes="none")
    with pytest.raises(ValueError, match="no report yet"):
        _ = lepton.optimize(lambda x: x).report


def test_wrong_calls_say_what_jit_says() -> None:
    def fun(x: Any, y: Any) -> Any:
        return jnp.dot(x, y)

    def branches(x: Any) -> Any:
        return x if x > 0 else -x

    def returns_text(x: Any) -> Any:
        return "text"

    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (fun, (jnp.ones(3),)),
        (fun, (jnp.ones(3), jnp.ones(4))),
        (fun, (jnp.ones(3), "text")),
        (branches, (1.0,)),
        (returns_text, (1.0,)),
    ]
    for function, args in calls:
        with pytest.raises(Exception) as plain:
            jax.jit(function)(*args)
        with pytest.raises(Exception) as ours:
            lepton.optimize(function)(*args)
        assert type(ours.value) is type(plain.value)
        first = str(plain.value).splitlines()[0]
        assert first[:60] in str(ours.value), (first, str(ours.value))


def test_concretization_error_names_the_argument() -> None:
    def fun(threshold: Any) -> Any:
        return 1 if threshold > 0 else 2

    with pytest.raises(jax.errors.TracerBoolConversionError, match="threshold"):
        lepton.optimize(fun)(jnp.ones(()))


def test_pytrees_come_back_as_they_were() -> None:
    def fun(pair: Pair, layer: Layer, nothing: None, *rest: Any, **named: Any) -> Any:
        return {
            "pair": Pair(pair.a * 1.0, None),
            "layer": Layer(layer.w + 0.0, layer.name),
            "rest": rest,
            "named": [named["k"], ()],
            "nothing": nothing,
        }

    args = (Pair(jnp.ones(2), 3), Layer(jnp.ones((2, 2)), "dense"), None, 1.5, jnp.arange(3))
    expected = jax.jit(fun)(*args, k=jnp.ones(1))
    result = lepton.optimize(fun)(*args, k=jnp.ones(1))
    chex.assert_trees_all_equal_structs(result, expected)
    assert isinstance(result["pair"], Pair) and result["layer"].name == "dense"
    jax.tree.map(np.testing.assert_array_equal, result, expected)


@pytest.mark.parametrize("x64", [False, True])
def test_dtypes_and_weak_types(x64: bool) -> None:
    def fun(x: Any, n: Any, z: Any) -> Any:
        return x * 1, n + 0, z - 0.0, x * n, 2.0, jnp.float16(1) * x, n

    with jax.enable_x64(x64):
        for args in (
            (1.0, 2, 1j),
            (jnp.ones(3), jnp.arange(3), jnp.ones(3, jnp.complex64)),
            (True, False, 0.0),
        ):
            expected = jax.jit(fun)(*args)
            result = lepton.optimize(fun)(*args)
            for a, b in zip(expected, result, strict=True):
                assert (a.dtype, a.shape, a.weak_type) == (b.dtype, b.shape, b.weak_type)
                np.testing.assert_array_equal(a, b)


def test_weak_types_of_prepared_models_and_of_derivatives() -> None:
    def fun(params: Any, x: Any, rate: Any) -> Any:
        strong = jnp.float32(rate), jnp.where(x > 0, rate, jnp.float32(3)), rate * jnp.float32(1)
        return params @ x * rate, *strong, rate, rate * 2

    args = jnp.eye(3), jnp.ones(3), 2.0
    f, model = lepton.optimize(fun), lepton.compile(fun, *args)
    ways = f, lambda _, *rest: model(*rest), lepton.optimize(fun, mesh={"data": 1}, shard="dp")

    def weak(fun: Any) -> Any:
        """Of results, tangents and the gradient by a number, which multiplies numbers of any dtype."""

        def at(rate: Any) -> Any:
            return fun(*args[:2], rate)

        gradient = jax.grad(lambda rate: jnp.sum(at(rate)[0]) + at(rate)[1])(args[2])
        found = fun(*args), jax.jvp(at, (2.0,), (1.0,)), gradient
        assert (gradient * jnp.bfloat16(1)).dtype == jnp.bfloat16
        return jax.tree.map(lambda x: (x.dtype, x.weak_type), found)

    for way in ways:
        assert weak(way) == weak(jax.jit(fun))


def test_prng_keys_in_and_out() -> None:
    def fun(key: Any) -> Any:
        first, second = jax.random.split(key)
        return first, jax.random.normal(second, (3,)) * 1.0

    key = jax.random.key(7)
    (a, x), (b, y) = jax.jit(fun)(key), lepton.optimize(fun)(key)
    assert jax.random.key_data(a).tolist() == jax.random.key_data(b).tolist()
    np.testing.assert_array_equal(x, y)


def test_static_arguments() -> None:
    traces = []

    @lepton.optimize(static_argnums=1, static_argnames=("flag",))
    def fun(x: Any, power: int, *, flag: bool = False) -> Any:
        traces.append((power, flag))
        assert isinstance(power, int) and isinstance(flag, bool)
        return x**power if flag else x

    x = jnp.arange(3.0)
    np.testing.assert_array_equal(fun(x, 2, flag=True), x**2)
    np.testing.assert_array_equal(fun(x, 2, flag=False), x)
    np.testing.assert_array_equal(fun(x, 3, flag=True), x**3)
    fun(x, 2, flag=True)
    assert traces == [(2, True), (2, False), (3, True)]
    assert fun.trace(x, 3, flag=True).graph.num_nodes() >= 1
    with pytest.raises(ValueError, match="hashable"):
        fun(x, [2], flag=True)  # type: ignore[arg-type]
    by_name = lepton.optimize(lambda x, power: x**power, static_argnums=1)
    np.testing.assert_array_equal(by_name(x, power=2), x**2)
    np.testing.assert_array_equal(by_name(x, 3), x**3)
    assert by_name.trace(x, 3).report.equations_before > 0


def test_donation() -> None:
    fun = lepton.optimize(lambda x: x + 1.0, donate_argnums=0)
    x = jnp.ones(8)
    np.testing.assert_array_equal(fun(x), np.full(8, 2.0))
    assert x.is_deleted()


def test_one_trace_for_one_shape() -> None:
    count = 0

    def fun(x: Any) -> Any:
        nonlocal count
        count += 1
        return noisy(x)

    f = lepton.optimize(fun)
    assert lepton.optimize(fun) is f
    assert lepton.optimize(fun, "none") is not f
    x = jnp.ones((2, 3))
    f(x), f(x + 1), f(np.ones((2, 3), np.float32)), jax.jit(f)(x), f.lower(x), f.trace(x)
    assert count == 1
    f(jnp.ones((3, 2)))
    assert count == 2
    wrapped = functools.wraps(fun)(lambda x: fun(x) + 1)
    np.testing.assert_allclose(lepton.optimize(wrapped)(x), fun(x) + 1, rtol=1e-6)


def test_threads() -> None:
    f = lepton.optimize(noisy)
    shapes = [(n % 5 + 1, 3) for n in range(40)]
    start = threading.Barrier(4)

    def work(index: int) -> Any:
        if index < 4:
            start.wait()
        return f(jnp.ones(shapes[index]))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(40)))
    expected = jax.jit(lambda: [noisy(jnp.ones(shape)) for shape in shapes[:5]])()
    for n, result in enumerate(results):
        np.testing.assert_allclose(result, expected[n % 5], rtol=1e-6)


def test_methods() -> None:
    class Model:
        def __init__(self) -> None:
            self.w = jnp.eye(3)

        @functools.partial(lepton.optimize, static_argnums=0)
        def forward(self, x: Any) -> Any:
            return x @ self.w * 1.0

    model = Model()
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(model.forward(x), x)
    bound = lepton.optimize(model.forward)
    np.testing.assert_array_equal(bound(x), x)


def test_stages() -> None:
    f = lepton.optimize(noisy)
    x = jnp.ones((2, 3))
    traced = f.trace(x)
    assert traced.graph_before.num_nodes() > traced.graph.num_nodes()
    assert traced.report.equations_before == traced.graph_before.num_nodes()
    assert "sin" in traced.graph.to_text()
    assert traced.out_info.shape == (2, 3)
    compiled = traced.lower().compile()
    np.testing.assert_allclose(compiled(x), noisy(x), rtol=1e-6)
    assert isinstance(f, jax.stages.Wrapped)
    np.testing.assert_allclose(
        f.lower(jax.ShapeDtypeStruct((2, 3), jnp.float32)).compile()(x), noisy(x), rtol=1e-6
    )
    f.clear_cache()
    assert f.trace(x).graph.num_nodes() == traced.graph.num_nodes()


def test_trace_after_call_from_jit() -> None:
    f = lepton.optimize(lambda x: noisy(x))
    jax.jit(f)(jnp.ones((2, 3)))
    assert f.trace(jnp.ones((2, 3))).report.equations_before > 0


def test_names_survive() -> None:
    def fun(x: Any) -> Any:
        with jax.named_scope("encoder"), jax.named_scope("attention"):
            return jnp.sin(jnp.transpose(jnp.transpose(x)) * 2.0)

    f = lepton.optimize(fun)
    x = jnp.ones((2, 3))
    assert any(node.scope == "encoder/attention" for node in f.trace(x).graph)
    assert "encoder/attention" in f.lower(x).as_text(debug_info=True)


def test_explain_says_what_fired_and_what_nearly_did() -> None:
    text = str(lepton.optimize(noisy).explain(jnp.ones((2, 3))))
    assert "transpose" in text and "api_programs.py" in text
    assert "fired" in text and "nearly fired" in text
