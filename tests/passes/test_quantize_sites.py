"""Every form of product, convolution and gather is quantised, under all transformations and in any order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from tests.passes._quantize import Case, check_codes, done, floats, joined, kept_of, reasons, sqnr

K, N, B = 48, 32, 8


def convolution(layout: tuple[str, str, str], groups: int = 1, strides: tuple[int, ...] = (1, 1)) -> Any:
    def run(w: Any, x: Any) -> Any:
        return lax.conv_general_dilated(
            x, w, strides, "SAME", dimension_numbers=layout, feature_group_count=groups
        )

    return run


def layers(ws: Any, x: Any) -> Any:
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0]


def nested(ws: Any, x: Any) -> Any:
    return lax.scan(lambda h, inner: (layers(inner, h), None), x, ws)[0]


def branches(w: Any, x: Any) -> Any:
    return lax.cond(x.sum() > 1e9, lambda h: h @ w, lambda h: h @ w * 2, x)


def transposed_convolution(w: Any, x: Any) -> Any:
    return lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")

CASES = {
    "right": Case(lambda w, x: x @ w, floats(K, N), floats(B, K)),
    "left": Case(lambda w, x: w @ x, floats(N, K), floats(K, B)),
    "transposed": Case(lambda w, x: x @ w.T, floats(N, K), floats(B, K)),
    "lax": Case(lambda w, x: lax.dot(x, w), floats(K, N), floats(B, K)),
    "vector": Case(lambda w, x: w @ x, floats(N, K), floats(K)),
    "batched": Case(lambda w, x: jnp.einsum("gkn,bgk->bgn", w, x), floats(3, K, N), floats(B, 3, K)),
    "several": Case(lambda w, x: jnp.tensordot(x, w, 2), floats(6, 8, N), floats(B, 6, 8)),
    "heads": Case(lambda w, x: jnp.einsum("bk,khd->bhd", x, w), floats(K, 4, 8), floats(B, K)),
    "three": Case(lambda w, x: jnp.einsum("bi,io,b->bo", x, w, x[:, 0]), floats(K, N), floats(B, K)),
    "vmap": Case(lambda w, x: jax.vmap(lambda row: jnp.dot(row, w))(x), floats(K, N), floats(B, K)),
    "scan": Case(layers, floats(3, K, K, scale=0.1), floats(B, K)),
    "nested": Case(nested, floats(2, 2, K, K, scale=0.1), floats(B, K)),
    "cond": Case(branches, floats(K, N), floats(B, K)),
    "checkpoint": Case(jax.checkpoint(lambda w, x: jnp.sin(x @ w)), floats(K, N, scale=0.1), floats(B, K)),
    "nhwc": Case(convolution(NHWC), floats(3, 3, 6, 8), floats(2, 7, 7, 6)),
    "nchw": Case(convolution(NCHW, strides=(2, 2)), floats(8, 6, 3, 3), floats(2, 6, 7, 7)),
    "grouped": Case(convolution(NHWC, groups=2), floats(3, 3, 3, 8), floats(2, 7, 7, 6)),
    "one": Case(convolution(("NWC", "WIO", "NWC"), strides=(1,)), floats(5, 6, 8), floats(2, 9, 6)),
    "upwards": Case(transposed_convolution, floats(3, 3, 6, 8), floats(2, 5, 5, 6)),
}
DEPTHWISE = {"depthwise": Case(convolution(NHWC, groups=16), floats(3, 3, 1, 16), floats(2, 7, 7, 16))}


def test_activations_and_weights_in_codes_after_the_default_passes() -> None:
    """Values, under vmap and jit; what is kept; and what is exported."""
    fun, params, x = joined(CASES)
    f = lepton.optimize(fun, "default,quantize{activations=dynamic}", params="params", strict=True)
    prepared = f.prepare(params, x)

    @jax.jit
    def run(prepared: Any, params: Any, x: Any) -> Any:
        two = jax.tree.map(lambda a: jnp.stack([a, a]), x)
        return fun(params, x), jax.vmap(f.apply, (None, 0))(prepared, two)

    exact, mapped = run(prepared, params, x)
    sites = f.report.sites
    assert not reasons(sites) and len(sites) == len(CASES) + 1  # both branches of the condition
    for name, case in CASES.items():
        check_codes(prepared, case, name)
        for found in mapped[name]:
            assert sqnr(exact[name], found) > (33 if name in ("scan", "nested") else 38), name
    text = jax.export.export(jax.jit(f.apply))(prepared, x).mlir_module()
    assert text.count("xi8>") >= len(CASES)


def test_weights_in_codes_before_the_default_passes_and_gradients() -> None:
    """The inputs' gradients are those of the decoded weights; depthwise convolutions are quantised too."""
    cases = CASES | DEPTHWISE
    fun, params, x = joined(cases)
    f = lepton.optimize(fun, "cleanup,movement,quantize,default", params="params", strict=True)
    prepared = f.prepare(params, x)

    @jax.jit
    def run(prepared: Any, params: Any, x: Any) -> Any:
        exact, pull = jax.vjp(lambda x: fun(params, x), x)
        found, pull_codes = jax.vjp(lambda x: f.apply(prepared, x), x)
        return exact, found, pull(exact), pull_codes(exact)

    exact, found, (gradient,), (through_codes,) = run(prepared, params, x)
    assert not reasons(f.report.sites)
    for name, case in cases.items():
        check_codes(prepared, case, name)
        assert sqnr(exact[name], found[name]) > 38, name
        assert sqnr(gradient[name], through_codes[name]) > 33, name


def test_depthwise_convolutions_after_the_default_passes_are_sums_and_stay_floats() -> None:
    (case,) = DEPTHWISE.values()
    model = lepton.compile(case.fun, case.params, case.x, passes="default,quantize{activations=dynamic}")
    (reason,) = reasons(model.fun.report.sites).values()
    assert reason.startswith("depthwise-as-shifts has made a sum") and "quantize,default" in reason
    assert all(array.dtype == jnp.float32 for array in model.params.arrays)
    static = "quantize{activations=static}"
    given = (case.fun, case.params, case.x)
    with pytest.raises(lepton.CalibrationError, match=r"nothing to calibrate.*depthwise-as-shifts"):
        lepton.compile(*given, passes=f"default,{static}", calibration=[case.x])
    before = lepton.compile(*given, passes=f"cleanup,movement,{static},default", calibration=[case.x])
    assert sqnr(case.fun(case.params, case.x), before(case.x)) > 25
    assert before.nbytes < model.nbytes / 2


@jax.jit
def block(w: Any, h: Any) -> Any:
    """A function too large to be inlined at every call."""
    for _ in range(12):
        h = jnp.sin(h) * 0.6 + jnp.tanh(h * 0.3)
    return inner_block(w, h) + inner_block(w, jnp.cos(h))


@jax.jit
def inner_block(w: Any, h: Any) -> Any:
    for _ in range(16):
        h = jnp.sin(h) * 0.6 + jnp.tanh(h * 0.3)
    return h @ w


def test_functions_that_are_called_in_several_places_have_weights_of_their_own() -> None:
    def fun(params: Any, x: Any) -> Any:
        return block(params["b"], block(params["a"], x))

    params, x = {"a": floats(K, K, scale=0.1), "b": floats(K, K, scale=0.1)}, floats(B, K)
    model = lepton.compile(fun, params, x, passes="default,quantize")
    assert len(done(model.fun.report.sites)) == 4 and not reasons(model.fun.report.sites)
    assert model.nbytes == 2 * (K * K + 4 * K)
    assert sqnr(fun(params, x), model(x)) > 35


# tables


def drawn(w: Any, i: Any) -> Any:
    """Each row is chosen by the one before."""
    return lax.scan(lambda j, _: (jnp.argmax(w[j]), w[j]), i[0, 1], length=5)[1]


def counted(w: Any, x: Any) -> Any:
    """A part of what is stacked for all steps."""
    return lax.fori_loop(0, 9, lambda k, h: jnp.tanh(h) * w[8 - k], x)


INDICES = jnp.array([[0, 3], [49, -1], [60, -60], [-50, 7]])  # 60 and -60 are out of bounds

TABLES = {
    "rows": Case(lambda w, i: w[i], floats(50, K), INDICES),
    "take": Case(lambda w, i: jnp.take(w, i, axis=0), floats(50, K), INDICES),
    "columns": Case(lambda w, i: jnp.take(w, i, axis=1), floats(K, 50), INDICES),
    "zeros": Case(lambda w, i: w.at[i].get(mode="fill", fill_value=0.0), floats(50, K), jnp.abs(INDICES)),
    "mapped": Case(lambda w, i: jax.vmap(lambda j: w[j])(i), floats(50, K), INDICES),
    "each": Case(lambda w, i: jax.vmap(jax.vmap(lambda j: w[j]))(i), floats(50, K), INDICES),
    "one": Case(lambda w, i: w[i[1, 1]], floats(50, K), INDICES),
    "last": Case(drawn, floats(50, K, scale=0.1), INDICES),
    "experts": Case(lambda w, i: w[jnp.abs(i) % 7], floats(7, 40, 6) * 4.0 ** jnp.arange(6), INDICES),
    "tied": Case(lambda w, i: w[i] @ w.T, floats(50, K), INDICES),
}
WITH_NAN = ("take", "columns")


def test_tables_give_what_take_gives() -> None:
    fun, params, x = joined(TABLES)
    exact = jax.jit(fun)(params, x)
    for weights, dtype, floor in (("int8", jnp.int8, 40.0), ("int4", jnp.uint8, 15.0)):
        model = lepton.compile(fun, params, x, passes=f"default,quantize{{weights={weights}}}")
        found = model(x)
        assert not reasons(model.fun.report.sites) and len(model.fun.report.sites) == len(TABLES) + 1
        for name, case in TABLES.items():
            check_codes(model.params, case, name, dtype)
            assert sqnr(exact[name], found[name]) > floor, (name, weights)
            assert np.isnan(found[name]).any() == (name in WITH_NAN), name
        experts = (exact["experts"][..., 0], found["experts"][..., 0])
        assert sqnr(*experts) > floor, weights  # a column of small numbers beside large ones


def test_tables_of_an_ensemble_in_groups() -> None:
    tables = floats(3, 50, K)
    every: Any = jax.vmap(lambda w, i: w[i], (0, None))
    model = lepton.compile(every, tables, INDICES % 50, passes="default,quantize{weights=int4,group=16}")
    assert sqnr(every(tables, INDICES % 50), model(INDICES % 50)) > 15


def test_a_tied_embedding_is_kept_once_with_quantised_activations_too() -> None:
    tied = {"tied": TABLES["tied"]}
    fun, params, x = joined(tied)
    model = lepton.compile(fun, params, x, passes="default,quantize{activations=dynamic}")
    assert sorted(done(model.fun.report.sites).values()) == [
        "int8, per channel; activations int8, dynamic",
        "int8, per row",
    ]
    assert len(kept_of(model.params, "tied")) == 2
    assert model.nbytes == 50 * K + 50 * 4
    assert sqnr(fun(params, x)["tied"], model(x)["tied"]) > 38


def test_gathers_that_do_not_take_rows_are_left_with_a_reason() -> None:
    cases = {
        "ones": Case(lambda w, i: w.at[i].get(mode="fill", fill_value=1.0), floats(9, 4), jnp.arange(12)),
        "elements": Case(lambda w, i: w[i, i], floats(9, 4), jnp.arange(3)),
        "outer": Case(lambda w, x: jnp.tensordot(w, x, 0), floats(9, 4), floats(3)),
        "counted": Case(counted, floats(9, 4), floats(4)),
        "image": Case(lambda w, x: convolution(NHWC)(x, w), floats(1, 7, 7, 2), floats(3, 3, 2, 4)),
    }
    fun, params, x = joined(cases)
    f = lepton.optimize(fun, "cleanup,quantize", params="params")
    found = reasons(f.trace(params, x).report.sites)
    assert found["params/ones"] == "rows out of bounds are filled with 1.0"
    assert found["params/elements"] == "it does not take whole rows"
    assert found["params/image"] == "the weight is the image of the convolution"
    assert found["params/counted"] == "no product, convolution or gather of rows reads it"
    assert "params/outer" in found
