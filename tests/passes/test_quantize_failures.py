"""What other quantisers of JAX programs miss, or fail at, is quantised here; floats elsewhere stay floats.

Each row is a program on which qwix 0.1.8 raises an error or leaves the weight in floats without a word.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

import lepton_jax as lepton
from tests.passes._quantize import Case, check_codes, floats, joined, reasons, sqnr

K, N, B = 64, 48, 8
NHWC = ("NHWC", "HWIO", "NHWC")


def convolution(w: Any, x: Any) -> Any:
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)


def weight_norm(p: Any, x: Any) -> Any:
    return x @ (p["v"] * (p["g"] / jnp.linalg.norm(p["v"], axis=0)))


class Layer(linen.Module):
    @linen.compact
    def __call__(self, h: Any, _: Any) -> Any:
        return jnp.tanh(linen.Dense(K, use_bias=False)(h)), None


class Scanned(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        layers = linen.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers()(x, None)[0]


def recurrent(p: Any, xs: Any) -> Any:
    return lax.scan(lambda h, x: (jnp.tanh(x @ p + h), None), jnp.zeros((B, N)), xs)[0]


VARIABLES = Scanned().init(jax.random.key(0), jnp.ones((B, K)))

ROWS = {
    "plain function": Case(lambda w, x: x @ w, floats(K, N), floats(B, K)),
    "weight on the left": Case(lambda w, x: jnp.dot(w, x), floats(N, K), floats(K, B)),
    "transposed": Case(lambda w, x: jnp.dot(x, w.T), floats(N, K), floats(B, K)),
    "derived": Case(weight_norm, {"v": floats(K, N), "g": floats(N)}, floats(B, K)),
    "computed": Case(lambda p, x: x @ jnp.tanh(p), floats(K, N), floats(B, K)),
    "lax.dot": Case(lambda w, x: lax.dot(x, w), floats(K, N), floats(B, K)),
    "einsum of three": Case(
        lambda w, x: jnp.einsum("bi,io,o->bo", x, w, x[0, :N]), floats(K, N), floats(B, K)
    ),
    "scanned": Case(Scanned().apply, VARIABLES, floats(B, K)),
    "steps": Case(recurrent, floats(K, N, scale=0.1), floats(4, B, K)),
    "embedding": Case(lambda w, i: w[i], floats(50, K), jnp.array([3, 49])),
    "tied": Case(lambda w, i: w[i] @ w.T, floats(50, K), jnp.array([3, 49])),
    "convolution": Case(convolution, floats(3, 3, 16, 8), floats(2, 7, 7, 16)),
}
FLOORS = {"int8": 36.0, "int4": 12.0}


@functools.cache
def exact() -> Any:
    """What the programs give in floats, run before anything is quantised."""
    fun, params, x = joined(ROWS)
    return jax.jit(fun)(params, x)


@pytest.mark.parametrize(
    "options",
    ["weights=int8", "weights=int8,activations=dynamic", "weights=int4", "weights=int4,group=16"],
)
def test_every_row_is_quantised(options: str) -> None:
    """A call in floats of the same shapes comes first, so that JAX's caches know every program."""
    fun, params, x = joined(ROWS)
    floats_first = exact()
    model = lepton.compile(fun, params, x, passes=f"default,quantize{{{options}}}", strict=True)
    found = model(x)
    assert not reasons(model.fun.report.sites)
    weights = options.split(",")[0].removeprefix("weights=")
    for name, case in ROWS.items():
        check_codes(model.params, case, name, jnp.int8 if weights == "int8" else jnp.uint8)
        assert sqnr(floats_first[name], found[name]) > FLOORS[weights], name


def test_four_bits_in_and_out_of_convolutions() -> None:
    case = ROWS["convolution"]
    options = "weights=int4,activations=dynamic,activation_format=int4,store=small"
    model = lepton.compile(case.fun, case.params, case.x, passes=f"default,quantize{{{options}}}")
    assert model.params["w#2"].dtype == jnp.uint8 and model.params["w#2"].size == case.params.size // 2
    assert sqnr(case.fun(case.params, case.x), model(case.x)) > 10


def test_programs_traced_afterwards_are_untouched() -> None:
    fun, params, x = joined(ROWS)
    before = str(jax.make_jaxpr(fun)(params, x))
    lepton.compile(fun, params, x, passes="default,quantize{activations=dynamic}")
    assert str(jax.make_jaxpr(fun)(params, x)) == before
    again = jax.jit(fun)(params, x)
    for name, expected in exact().items():
        np.testing.assert_array_equal(again[name], expected, err_msg=name)
