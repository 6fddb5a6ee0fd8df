"""Ragged products with quantised weights, as mixtures of experts have them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.passes.quantize._quantize import forms
from tests.passes._quantize import done, floats, reasons, sqnr

EXPERTS, WIDTH, INNER, ROWS = 4, 32, 48, 40
PARAMS = {
    "up": floats(EXPERTS, WIDTH, INNER, scale=0.2) * jnp.array([1.0, 4.0, 0.2, 1.0])[:, None, None],
    "down": floats(EXPERTS, WIDTH, INNER, scale=0.2),
}
SIZES = jnp.array([11, 0, 20, 6], jnp.int32)
"""One expert has no rows, and the last rows no expert."""

TURNED = lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))


def experts(params: Any, x: Any, sizes: Any) -> Any:
    """Two layers, the second with its weights stored the other way."""
    h = jnp.tanh(lax.ragged_dot(x, params["up"], sizes))
    return lax.ragged_dot_general(h, params["down"], sizes, TURNED)


def expected(params: Any, x: Any, sizes: Any) -> Any:
    """The same, row by row, in NumPy."""
    rows = np.repeat(np.arange(EXPERTS), sizes)
    found = np.zeros((ROWS, WIDTH))
    for i, expert in enumerate(rows):
        h = np.tanh(np.asarray(x[i], np.float64) @ np.asarray(params["up"][expert], np.float64))
        found[i] = np.asarray(params["down"][expert], np.float64) @ h
    return found


@pytest.mark.parametrize(
    ("options", "least", "most", "words"),
    [
        ("", 35, 0.28, "int8, per channel"),
        ("activations=dynamic", 32, 0.28, "int8, per channel; activations int8, dynamic"),
        ("activations=static", 28, 0.28, "int8, per channel; activations int8, static"),
        ("activations=dynamic,per=tensor", 18, 0.26, "int8, per tensor; activations int8, dynamic"),
        ("activations=dynamic,weights=fp8_e4m3", 20, 0.28, "fp8_e4m3, per channel; activations fp8_e4m3"),
        ("weights=int4,group=20,symmetric=false,activations=dynamic", 16, 0.24, "int4, groups of 20, affine"),
    ],
)
def test_experts(options: str, least: float, most: float, words: str) -> None:
    """A scale for each expert and output; what weights-only settings decode is said."""
    x = floats(ROWS, WIDTH)
    model = lepton.compile(
        experts,
        *(PARAMS, x, SIZES),
        passes=f"default,quantize{{{options}}}",
        calibration=[(x, SIZES), (-x, SIZES)] if "static" in options else None,
    )
    assert sqnr(expected(PARAMS, x, SIZES), model(x, SIZES)) > least
    assert not jnp.any(model(x, SIZES)[37:])
    assert model.nbytes < most * sum(weight.nbytes for weight in PARAMS.values())
    sites = model.report().passes.sites
    assert all(words in site for site in done(sites).values())
    exported = jax.export.export(jax.jit(model.jit), platforms=("cpu", "cuda", "tpu"))
    np.testing.assert_array_equal(
        exported(model.params, x, SIZES).call(model.params, x, SIZES), model(x, SIZES)
    )


def test_weights_alone_in_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in digits of int8, by expert, come as near as decoded weights; derivatives too."""
    monkeypatch.setattr(forms, "has_dot_products", lambda: True)
    params = floats(8, 32, 72, scale=0.2)
    x, sizes = floats(256, 32), jnp.array([40, 0, 90, 3, 60, 20, 20, 3])

    def one(w: Any, x: Any, sizes: Any) -> Any:
        return lax.ragged_dot(x, w, sizes)

    for weights in ("int8", "int4"):
        passes = f"default,quantize{{weights={weights}}}"
        model = lepton.compile(one, params, x, sizes, passes=passes)
        decoded = lepton.compile(one, params, x, sizes, passes=passes.replace("}", ",products=floats}"))
        assert done(model.report().passes.sites)["w"].endswith("activations in digits of int8")
        assert model.report().passes.rules["int8-rows-by-group"] == 1
        assert sqnr(decoded(x, sizes), model(x, sizes)) > 70
        few = x[:4], jnp.array([1, 0, 0, 1, 0, 0, 1, 0])
        assert sqnr(decoded(*few), model(*few)) > 110  # three digits
        slopes = [jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x, sizes))))(x) for f in (model, decoded)]
        assert sqnr(slopes[1], slopes[0]) > 60
    precise = lepton.compile(
        lambda w, x, sizes: lax.ragged_dot(x, w, sizes, precision="highest"),
        *(params, x, sizes),
        passes="default,quantize",
    )
    decoded = lepton.compile(one, params, x, sizes, passes="default,quantize{products=floats}")
    assert sqnr(decoded(x, sizes), precise(x, sizes)) > 110


def test_methods_and_training() -> None:
    """GPTQ by the rows of all experts; step sizes that are learned; sites ranked."""
    mixed = floats(WIDTH, WIDTH) * jnp.exp(floats(WIDTH))
    batches = [(floats(ROWS, WIDTH) @ mixed, SIZES) for _ in range(8)]
    x = batches[0][0]

    def one(up: Any, x: Any, sizes: Any) -> Any:
        return lax.ragged_dot(x, up, sizes)

    exact, quality = one(PARAMS["up"], x, SIZES), {}
    for method in ("round", "gptq"):
        model = lepton.compile(
            one,
            *(PARAMS["up"], x, SIZES),
            passes=f"default,quantize{{weights=int3,method={method}}}",
            calibration=batches if method == "gptq" else None,
        )
        quality[method] = sqnr(exact, model(x, SIZES))
    assert quality["gptq"] > quality["round"] + 1

    passes = "default,quantize{weights=int4,activations=static,train=lsq}"
    f = lepton.trainable(experts, PARAMS, x, SIZES, passes=passes, calibration=batches)
    slopes = jax.grad(lambda p: jnp.sum(f(p, x, SIZES) ** 2))(f.params)
    assert all(float(jnp.abs(slope).max()) > 0 for slope in jax.tree.leaves(slopes))
    assert sqnr(f(f.params, x, SIZES), f.compile(f.params)(x, SIZES)) > 80

    found = lepton.sensitivity(experts, PARAMS, x, SIZES, data=batches[:1], passes="default,quantize")
    assert {row.name for row in found.rows} == {"params/up", "params/down"}


def test_left_alone() -> None:
    """The gradient of a weight is a ragged product without one; selectors choose by operation."""

    def grouped(params: Any, x: Any, sizes: Any) -> Any:
        return jax.grad(lambda up: jnp.sum(lax.ragged_dot(x, up, sizes)))(params["up"]) + params["x"].T @ x

    x = floats(ROWS, WIDTH)
    params = {"up": PARAMS["up"], "x": floats(ROWS, WIDTH)}
    passes = "default,quantize{ops=ragged_dot_general}"
    with pytest.raises(lepton.UsageError, match="selects nothing"):
        lepton.compile(lambda p, x, s: x @ p["x"].T, params, x, SIZES, passes=passes)
    model = lepton.compile(experts, PARAMS, x, SIZES, passes=passes)
    assert all(done(model.report().passes.sites).values())

    def weight_in_groups(w: Any, x: Any, sizes: Any) -> Any:
        numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())
        return lax.ragged_dot_general(w, x, sizes, numbers)

    model = lepton.compile(weight_in_groups, params["x"], x, SIZES, passes="default,quantize")
    assert reasons(model.report().passes.sites) == {"w": "it is what a ragged product cuts into groups"}
    np.testing.assert_allclose(model(x, SIZES), weight_in_groups(params["x"], x, SIZES), rtol=1e-5, atol=1e-5)
