"""What calibration is good for: static activations, GPTQ, SmoothQuant and AWQ, through loops and calls."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from tests.passes._quantize import Case, check_codes, done, floats, joined, reasons, sqnr

K, N, B = 64, 48, 256


def product(w: Any, x: Any) -> Any:
    return x @ w


def layers(ws: Any, x: Any) -> Any:
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0]


def growing(ws: Any, x: Any) -> Any:
    """Layers of very different ranges."""
    return lax.scan(lambda h, w: (h @ w, h.sum()), x, ws)[0]


def convolution(w: Any, x: Any) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=2)


def branches(w: Any, x: Any) -> Any:
    return lax.cond(x.sum() > 1e9, lambda h: h @ w, lambda h: h @ w * 2, x)


def correlated(rows: int) -> jax.Array:
    """Inputs of few directions and a little noise."""
    return floats(rows, 6) @ MIX + 0.05 * floats(rows, K)


MIX = floats(6, K)
W = floats(K, N)
STATIC = {
    "product": Case(product, W, floats(B, K)),
    "left": Case(lambda w, x: w @ x, floats(N, K), floats(K, B)),
    "batched": Case(lambda w, x: jnp.einsum("gkn,bgk->bgn", w, x), floats(3, K, N), floats(8, 3, K)),
    "scan": Case(layers, floats(3, K, K, scale=0.1), floats(B, K)),
    "growing": Case(growing, jnp.stack([jnp.eye(K) * 30 + floats(K, K)] * 3), floats(8, K)),
    "checkpoint": Case(jax.checkpoint(lambda w, x: jnp.sin(x @ w)), floats(K, N, scale=0.1), floats(B, K)),
    "convolution": Case(convolution, floats(3, 3, 8, 16), floats(4, 7, 7, 16)),
    "cond": Case(branches, W, floats(8, K)),
}


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_static_activations(observer: str) -> None:
    """Every layer of a loop has its own range: the last one of `growing` is nine hundred times the first."""
    fun, params, x = joined(STATIC if observer == "minmax" else {"scan": STATIC["scan"]})
    batches = [jax.tree.map(lambda a: a * 0.5, x), x]
    model = lepton.compile(
        fun,
        params,
        x,
        passes=f"inline,quantize{{activations=static,observer={observer}}}",
        calibration=batches,
        strict=True,
    )
    exact, found = jax.jit(fun)(params, x), model(x)
    for name in exact:
        if name != "cond":
            check_codes(model.params, STATIC[name], name)
            assert sqnr(exact[name], found[name]) > 25, name
    left = reasons(model.fun.report.sites)
    assert left == ({"params/cond#2": "calibration never took its branch"} if "cond" in x else {})
    assert "reduce_max" not in apply_ops(model, params, x)


def apply_ops(model: lepton.Model, params: Any, x: Any) -> list[str]:
    """The operations of a model's calls, those of loops and branches included."""
    return [node.op for node in model.fun.preparer.bound((params, x), {}).parts.apply.walk()]


def damage(options: str, cases: dict[str, Case], sample: Any) -> dict[str, float]:
    """The noise that quantisation makes on other inputs than those of calibration, as SQNR."""
    fun, params, x = joined(cases)
    needs = any(word in options for word in ("gptq", "static", "awq", "smoothquant"))
    passes = f"inline,quantize{{{options}}}"
    model = lepton.compile(fun, params, x, passes=passes, calibration=[x] if needs else None, strict=True)
    assert not reasons(model.fun.report.sites)
    exact, found = jax.jit(lambda m, p, x: (fun(p, x), m(x)))(model, params, sample)
    return {name: sqnr(exact[name], found[name]) for name in exact}


def test_gptq_is_better_than_rounding_where_inputs_are_correlated() -> None:
    def image() -> jax.Array:
        return jnp.repeat(floats(4, 7, 7, 2), 8, axis=-1) + 0.05 * floats(4, 7, 7, 16)

    cases = {
        "product": Case(product, W, correlated(B)),
        "convolution": Case(convolution, floats(3, 3, 8, 16), image()),
        "scan": Case(layers, floats(2, K, K, scale=0.1), correlated(B)),
    }
    sample = {"product": correlated(64), "convolution": image(), "scan": correlated(64)}
    plain = damage("weights=int3", cases, sample)
    better = damage("weights=int3,method=gptq,activations=static", cases, sample)
    gains = {name: better[name] - plain[name] for name in cases}
    assert gains["product"] > 3 and gains["convolution"] > 3 and gains["scan"] > 1, gains


def with_outliers(rows: int) -> jax.Array:
    """Inputs of which a few channels are large."""
    return floats(rows, K) * jnp.ones(K).at[jnp.array([3, 17, 40])].set(30.0)


def test_balance_is_better_than_none_where_inputs_have_outliers() -> None:
    x = with_outliers(B)  # measured on other inputs, a static range that fits less well may cost the gain
    cases, sample = {"product": Case(product, W, x)}, {"product": x}

    def gain(options: str, balance: str) -> float:
        found = [damage(options + more, cases, sample)["product"] for more in ("", f",balance={balance}")]
        return found[1] - found[0]

    assert gain("activations=static", "smoothquant") > 3
    assert gain("weights=int3,group=32", "awq") > 1


def heads(params: Any, x: Any) -> Any:
    return [x @ params[name] for name in "qkv"]


def test_products_of_one_input_are_calibrated_balanced_and_quantised_as_one() -> None:
    """SmoothQuant loses nothing by itself: in a format of many bits the products are what they were."""
    params = {name: floats(K, N) * factor for name, factor in (("q", 1.0), ("k", 3.0), ("v", 0.1))}
    x = with_outliers(B)
    rounded = {"activations=static": 1, "activations=static,balance=smoothquant": 1, "balance=smoothquant": 0}
    for options, count in rounded.items():
        passes = f"default,quantize{{{options}}}"
        model = lepton.compile(heads, params, x, passes=passes, calibration=[x])
        assert apply_ops(model, params, x).count("round") == count, options
        divisors = [array for array in model.params.arrays if array.shape == (K,)]
        assert len(divisors) == options.count("smoothquant"), options
        assert all(what.endswith(options[-6:]) for what in done(model.fun.report.sites).values()), options
        for a, b in zip(heads(params, x), model(x), strict=True):
            assert sqnr(a, b) > (38 if "static" not in options else 25), options


def test_each_of_several_passes_calibrates_what_it_takes() -> None:
    params = {name: floats(K, N) for name in "qkv"}
    x = with_outliers(B)
    passes = (
        'inline,quantize{only="params/q",activations=static},'
        'quantize{only="params/k"},quantize{activations=static,observer=mse,rows=tensor}'
    )
    model = lepton.compile(heads, params, x, passes=passes, calibration=[x], strict=True)
    assert list(done(model.fun.report.sites).values()) == [
        "int8, per channel; activations int8, static",
        "int8, per channel",
        "int8, per channel; activations int8, static",
    ]
    clipped, whole = sorted(float(array) * 127 for array in model.params.arrays if array.ndim == 0)
    assert whole == pytest.approx(float(jnp.abs(x).max()), rel=1e-5)
    assert clipped < 0.98 * whole


def test_what_all_steps_share_is_seen_once_at_any_length() -> None:
    """Layers in a loop over time in which they are the same; each layer has numbers of its own."""

    def step(ws: Any, h: Any, x: Any) -> tuple[Any, None]:
        return lax.scan(lambda h, w: (jnp.tanh(h @ w + x), None), h, ws)[0], None

    def recurrent(ws: Any, xs: Any) -> Any:
        return lax.scan(lambda h, x: step(ws, h, x), jnp.zeros(K), xs)[0]

    ws, xs = floats(2, K, K, scale=0.1), floats(7, K)
    short, codes = xs[:4], 2 * K * K
    for options, size in (
        ("activations=static", codes + 4 * 2 * (K + 1)),
        ("weights=int4,method=gptq,balance=smoothquant", codes // 2 + 4 * 2 * 2 * K),
        ("weights=int4,correct=bias", codes // 2 + 4 * 2 * 2 * K),
    ):
        model = lepton.compile(
            recurrent, ws, xs, passes=f"default,quantize{{{options}}}", calibration=[xs, short], strict=True
        )
        assert model.nbytes == size, options
        for x in (xs, short, floats(3, K)):
            assert sqnr(recurrent(ws, x), model(x)) > (13 if "int4" in options else 25), options
    (row,) = lepton.sensitivity(recurrent, ws, xs, data=[xs, short], passes="default,quantize").rows
    assert row.saved == 2 * (3 * K * K - 4 * K)
    f = lepton.trainable(
        recurrent, ws, xs, passes="default,quantize{activations=static,train=lsq}", calibration=[xs]
    )
    (learned,) = f.params["learned"].values()
    assert jax.tree.map(jnp.shape, learned) == {"input-step": (2,), "weight-step": (2, 1, K)}
    np.testing.assert_allclose(f.compile(f.params)(short), f(f.params, short), rtol=1e-5, atol=1e-5)
