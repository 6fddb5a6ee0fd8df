"""Weights in branches, in modules that are arguments, in functions with derivatives of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

import lepton_jax as lepton
from tests.passes._quantize import Case, done, floats, joined, reasons, sqnr

WIDTH = 32


def nested(w: Any, x: Any) -> Any:
    """Branches in branches; one of them is never taken."""

    def inner(h: Any) -> Any:
        return lax.cond(h[0, 0] < 1e9, lambda h: h @ w["deep"], lambda h: h @ w["never"], h)

    return lax.switch(jnp.int32(x[0, 0] > 0), [inner, lambda h: h @ w["second"], lambda h: h @ w["third"]], x)


def layers_with_branches(ws: Any, x: Any) -> Any:
    """Layers of a scan that go one way or the other; each has a range of its own."""

    def layer(h: Any, given: Any) -> Any:
        i, w = given
        return lax.cond(i % 2 == 0, lambda h: h @ w, lambda h: h @ (w * 3.0), h), None

    return lax.scan(layer, x, (jnp.arange(3), ws))[0]


@jax.custom_vjp
def scaled_product(x: Any, w: Any) -> Any:
    """A product with a derivative of its own."""
    return jnp.sin(x @ w)


scaled_product.defvjp(
    lambda x, w: (scaled_product(x, w), (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g)
)


@jax.custom_jvp
def with_tangent(x: Any, w: Any) -> Any:
    """The same forwards."""
    return x @ w + 1.0


@with_tangent.defjvp
def _tangent(primals: Any, tangents: Any) -> Any:
    return with_tangent(*primals), tangents[0] @ primals[1] + primals[0] @ tangents[1]


class Block(linen.Module):
    """A layer of a Linen model."""

    @linen.compact
    def __call__(self, x: Any, _: Any) -> Any:
        return jnp.tanh(linen.Dense(WIDTH)(x)), None


STACK = linen.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
VARIABLES = STACK.init(jax.random.key(0), jnp.ones((2, WIDTH)), None)

CASES = {
    "three": Case(lambda w, x: jnp.einsum("bd,de,be->b", x, w, x), floats(WIDTH, WIDTH), floats(4, WIDTH)),
    "custom_vjp": Case(lambda w, x: scaled_product(x, w), floats(WIDTH, 8, scale=0.2), floats(4, WIDTH)),
    "custom_jvp": Case(lambda w, x: with_tangent(x, w), floats(WIDTH, 8), floats(4, WIDTH)),
    "checkpoint": Case(jax.checkpoint(lambda w, x: jnp.sin(x @ w)), floats(WIDTH, 8) * 0.2, floats(4, WIDTH)),
    "nn.scan": Case(lambda w, x: STACK.apply(w, x, None)[0], VARIABLES, floats(4, WIDTH)),
}


def sites_of(f: Any) -> set[str]:
    """The sites where something was done."""
    return {name for name, what in done(f.report.sites).items() if what}


def test_products_in_functions_of_all_kinds() -> None:
    fun, params, x = joined(CASES)
    model = lepton.compile(
        fun, params, x, passes="default,quantize{activations=static}", calibration=[x], strict=True
    )
    exact, found = jax.jit(fun)(params, x), model(x)
    for name in CASES:
        assert sqnr(exact[name], found[name]) > 25, name
    assert {name.split("/")[1]: reason for name, reason in reasons(model.fun.report.sites).items()} == {
        "custom_vjp": "it is in a custom_vjp_call",
        "custom_jvp": "it is in a custom_jvp_call",
        "nn.scan": "no product, convolution or gather of rows reads it",  # the bias
    }
    own = {name: case for name, case in CASES.items() if name.startswith("custom")}
    fun, params, x = joined(own)
    model = lepton.compile(fun, params, x, passes="default,quantize{activations=dynamic}", strict=True)
    exact, found = jax.jit(fun)(params, x), model(x)
    for name in own:
        assert sqnr(exact[name], found[name]) > 25, name
    assert sites_of(model.fun) == {f"params/{name}" for name in own}


def test_ranges_in_branches() -> None:
    cases = {
        "nested": Case(
            nested,
            {name: floats(WIDTH, 8) for name in ("deep", "never", "second", "third")},
            floats(4, WIDTH),
        ),
        "layers": Case(layers_with_branches, floats(3, WIDTH, WIDTH, scale=0.2), floats(4, WIDTH)),
    }
    fun, params, x = joined(cases)
    batches = [x, jax.tree.map(jnp.negative, x)]
    exactly = jax.jit(fun)
    for options in ("activations=static", "weights=int4,method=gptq,activations=static,balance=smoothquant"):
        model = lepton.compile(
            fun, params, x, passes=f"inline,quantize{{{options}}}", calibration=batches, strict=True
        )
        sites = model.fun.report.sites
        left = {name: reason for name, reason in reasons(sites).items() if "layers" not in name}
        never = "calibration never took its branch"
        assert left == {"params/nested/never": never, "params/nested/third": never}
        assert {f"params/nested/{name}" for name in ("deep", "second")} <= set(done(sites))
        for batch in batches:
            exact, found = exactly(params, batch), model(batch)
            assert sqnr(exact["nested"], found["nested"]) > (25 if "int4" not in options else 10)
            assert sqnr(exact["layers"], found["layers"]) > 10


def one_of_several(w: Any, x: Any) -> Any:
    """A branch for each example."""

    def deep(h: Any) -> Any:
        return lax.cond(h[0] > 0, lambda h: jnp.tanh(h @ w["a"]) @ w["d"], lambda h: h @ w["b"], h)

    return lax.switch(jnp.int32(x[1] > 0), [deep, lambda h: h @ w["c"]], x)


def test_branches_under_vmap() -> None:
    params = {name: floats(WIDTH, WIDTH, scale=0.2) for name in "abcd"}
    x = floats(2, 4, WIDTH)

    def fun(params: Any, x: Any) -> Any:
        return jax.vmap(jax.vmap(one_of_several, (None, 0)), (None, 0))(params, x)

    exact = fun(params, x)
    for passes in ("quantize", "default,quantize{activations=static}"):
        calibration = [x] if "static" in passes else None
        model = lepton.compile(fun, params, x, passes=passes, calibration=calibration, strict=True)
        assert not reasons(model.fun.report.sites) and len(model.params.arrays) <= 12
        assert model.nbytes <= 4 * (WIDTH * WIDTH + 4 * WIDTH + 4)
        assert sqnr(exact, model(x)) > 25
    whole = lepton.compile(fun, params, x, passes="default")
    assert whole.nbytes == 4 * 4 * WIDTH * WIDTH  # no copies for each example
    np.testing.assert_allclose(whole(x), exact, rtol=1e-5, atol=1e-5)
    f = lepton.trainable(fun, params, x, passes="default,quantize{weights=int4,train=lsq}")
    assert not f.params["learned"]
    slopes = jax.grad(lambda p: f(p, x).sum())(f.params)["params"]
    wanted = jax.grad(lambda p: fun(p, x).sum())(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), slopes, wanted)
    np.testing.assert_array_equal(f.compile(f.params)(x), f(f.params, x))
    assert set(reasons(f.report.sites).values()) == {"vmap has made a selection of the branch that reads it"}


class Perceptron(nnx.Module):
    """Two layers, and a count of calls."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.up = nnx.Linear(WIDTH, 64, rngs=rngs)
        self.down = nnx.Linear(64, WIDTH, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros(()))

    def __call__(self, x: Any) -> Any:
        self.calls[...] = self.calls[...] + 1
        return self.down(nnx.relu(self.up(x)))

    def plain(self, x: Any) -> Any:
        """The same without a count."""
        return self.down(nnx.relu(self.up(x)))


def test_modules_as_parameters() -> None:
    model, x = Perceptron(), floats(4, WIDTH)
    expected = model.plain(x)

    def fun(x: Any, model: Perceptron, *, factor: Any = 1.0) -> Any:
        return model.plain(x) * factor

    f = lepton.optimize(fun, "default,quantize{activations=dynamic}", params="model")
    names = {"model/up/kernel", "model/down/kernel"}
    found = f(x, model)
    assert sqnr(expected, found) > 25 and sites_of(f) == names
    prepared = f.prepare(x, model)
    np.testing.assert_allclose(found, f.apply(prepared, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(2 * found, f.apply(prepared, x, factor=2.0), rtol=1e-4, atol=1e-5)
    assert set(prepared) >= names

    def counted(model: Perceptron, *xs: Any, twice: bool = False) -> Any:
        return model(xs[0]) * (1 + twice) + xs[1]

    g = lepton.optimize(counted, "default,quantize", params=0, static_argnames="twice")
    assert sqnr(2 * expected + 1, g(model, x, 1.0, twice=True)) > 25
    assert model.calls[...] == 1 and sites_of(g) == names
    only = lepton.optimize(counted, "default,quantize", params="model/down")
    only(model, x, 0.0)
    assert sites_of(only) == {"model/down/kernel"}


def test_products_of_two_dtypes() -> None:
    """`x @ w` with a weight of another dtype than x; one that stays in floats is kept as it was."""

    def program(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["one"]) @ p["two"]

    for weights, inputs in (
        (jnp.bfloat16, jnp.float32),
        (jnp.float32, jnp.bfloat16),
        (jnp.float16, jnp.bfloat16),
    ):
        params = {name: floats(WIDTH, WIDTH, scale=0.2).astype(weights) for name in ("one", "two")}
        x = floats(4, WIDTH).astype(inputs)
        expected = jax.jit(program)(params, x)
        for options in ("", "activations=dynamic", "weights=int4,group=8"):
            model = lepton.compile(program, params, x, passes=f"default,quantize{{{options}}}")
            assert all(done(model.report().passes.sites).values())
            assert model(x).dtype == expected.dtype
            least = 14 if "int4" in options else 33
            assert sqnr(expected.astype(jnp.float32), model(x).astype(jnp.float32)) > least
        model = lepton.compile(program, params, x, passes='default,quantize{skip="p/two"}')
        kept = [array.dtype for array in model.params.values() if array.size == WIDTH * WIDTH]
        assert sorted(map(str, kept)) == sorted(("int8", jnp.dtype(weights).name))


def test_weights_that_numbers_of_python_are_part_of() -> None:
    """Such as the scale of an adapter; they may be rounded into codes as arrays may."""
    params, x = {"w": floats(WIDTH, WIDTH, scale=0.2), "scale": 2.0}, floats(4, WIDTH)

    def program(p: Any, x: Any) -> Any:
        return x @ (p["w"] * p["scale"])

    model = lepton.compile(program, params, x, passes="default,quantize")
    assert sqnr(program(params, x), model(x)) > 33
    with pytest.raises(lepton.PrepareError, match="p/scale has NaN"):
        lepton.compile(program, {**params, "scale": float("nan")}, x, passes="default,quantize")
