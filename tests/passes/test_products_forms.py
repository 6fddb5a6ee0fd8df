"""Products of stored weights, of one input, and of bfloat16: the forms they get, and the numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.ir.binding import store
from lepton_jax.targets import forms, processor
from tests.passes._lowering import Case, check_cases, floats, int8, lowered

BF16 = jnp.bfloat16
TURNED = {"turned-product": 1}


def quantised(x: Any, w: Any) -> Any:
    return lax.dot(x, store(jnp.round(w * 100).astype(jnp.int8)), preferred_element_type=jnp.int32)


def read_late_too(x: Any, w: Any, i: Any) -> Any:
    codes = store(jnp.round(w * 100).astype(jnp.int8))
    return lax.dot(x, codes, preferred_element_type=jnp.int32), lax.dynamic_slice_in_dim(codes, i, 1, 0)


STORED = {
    "stored": Case(quantised, (int8(16, 128), floats(128, 256)), TURNED),
    "stored, more rows than columns": Case(
        quantised, (int8(300, 128), floats(128, 256)), {"product-by-rows": 1}
    ),
    "stored, read as it is too": Case(read_late_too, (int8(16, 128), floats(128, 256), jnp.int32(3)), {}),
}


def test_stored_weights_are_stored_turned() -> None:
    graphs = check_cases(STORED)
    text = graphs["stored"].to_text()
    assert "i8[256,128] = name[name='lepton.stored']" in text and "i8[128,256] = name" not in text
    f: Any = lepton.optimize(lambda w, x: quantised(x, w), "products", params=0)
    x, w = int8(16, 128), floats(128, 256)
    prepared = f.prepare(w, x)
    assert [leaf.shape for leaf in jax.tree.leaves(prepared)] == [(256, 128)]
    assert "transpose[permutation=(1, 0)] a" not in str(f.jit_of(prepared).trace(prepared, x).jaxpr)
    np.testing.assert_array_equal(f.apply(prepared, x), quantised(x, w))


def low(x: Any, w: Any) -> Any:
    return x @ w


def low_to_float(x: Any, w: Any) -> Any:
    return lax.dot_general(x, w, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)


def to_float(x: Any, w: Any) -> Any:
    return lax.dot(x, w, preferred_element_type=jnp.float32)


def test_bfloat16_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    args = floats(3, 128, dtype=BF16), floats(128, 256, dtype=BF16)
    monkeypatch.setattr(processor, "has", lambda *names: False)
    assert lowered(Case(low, args, {}))[1] == {}
    assert forms.product_form("cpu", "bfloat16", 3, 512, 512, by_rows=True) is None
    for instructions in ("amx_bf16", "avx512_bf16"):
        monkeypatch.setattr(processor, "has", lambda *names, one=instructions: names == (one,))
        assert forms.product_form("cpu", "bfloat16", 1, 512, 512, by_rows=False) == forms.Form("plain", 4)
    assert forms.product_form("cpu", "bfloat16", 1, 512, 512, by_rows=True) == forms.Form("turned", 4)
    assert lowered(Case(low, args, {}))[1] == {}
    batches = floats(2, 5, 128, dtype=BF16), floats(2, 128, 256, dtype=BF16)
    programs = [(low, args), (low_to_float, batches), (to_float, (args[0][:1], args[1]))]
    for number, (fun, (x, w)) in enumerate(programs):
        f: Any = lepton.optimize(lambda w, x, fun=fun: fun(x, w), "none", params=0)
        prepared = f.prepare(w, x)
        assert jax.tree.leaves(prepared)[0].shape[-2:] == (256, 128), number
        assert f.report.rules["turned-product"] == 1, number
        two = jnp.stack([x, -x])
        for found, given in ((f.apply(prepared, x), x), (jax.vmap(f.apply, (None, 0))(prepared, two)[1], -x)):
            expected = np.asarray(fun(given, w), np.float32)
            np.testing.assert_allclose(
                np.asarray(found, np.float32), expected, 0.02, 0.02, err_msg=str(number)
            )


def heads(params: Any, x: Any) -> Any:
    q = jnp.einsum("btd,dhk->bthk", x, params["q"])
    q = jax.nn.relu(q) * 2
    k = jnp.einsum("btd,dhk->bthk", x, params["k"])
    v = jnp.einsum("btd,dhk->bthk", x, params["v"])
    return q, k, v


def gated(params: Any, x: Any) -> Any:
    def layer(x: Any, p: Any) -> Any:
        return x + jax.nn.silu(x @ p["gate"]) * (x @ p["up"]) @ p["down"], None

    return jax.lax.scan(layer, x, params)[0]


def on_the_left(params: Any, x: Any) -> Any:
    return params["a"] @ x, params["b"] @ x, params["a"] @ x[:, :24]


def test_products_of_one_input_are_one() -> None:
    x = floats(2, 3, 64)
    attention = {"q": floats(64, 8, 16), "k": floats(64, 2, 16), "v": floats(64, 2, 16)}
    layers = {"gate": floats(2, 64, 96), "up": floats(2, 64, 96), "down": floats(2, 96, 64)}
    codes = "quantize{activations=dynamic}"
    for passes, rules, kept in (
        (codes, {"merged-products": 1}, 12 * 16 * 64 * 1 + 12 * 16 * 4),
        (f"{codes},merge-products{{most=0}}", {"merged-products": 1}, None),
        ("merge-products{most=1000000}", {"merged-products": 1}, 12 * 16 * 64 * 4),
        ("none", {}, None),
    ):
        model = lepton.compile(heads, attention, x, passes=passes)
        report = model.report().passes.rules
        assert {k: n for k, n in report.items() if k == "merged-products"} == rules, passes
        assert kept is None or model.nbytes == kept, passes
        for found, expected in zip(model(x), heads(attention, x), strict=True):
            np.testing.assert_allclose(found, expected, 0.05, 0.05, err_msg=passes)
    scanned = lepton.compile(gated, layers, x, passes=codes)
    assert scanned.report().passes.rules["merged-products"] == 1
    assert "concatenate" not in str(scanned.jit.trace(scanned.params, x).jaxpr)
    np.testing.assert_allclose(scanned(x), gated(layers, x), 0.2, 0.2)


def test_what_is_not_merged() -> None:
    x, a = floats(16, 128), {"a": floats(32, 16), "b": floats(8, 16)}
    inline: Any = lepton.optimize(
        on_the_left, "cleanup,quantize{activations=dynamic},merge-products", params="params"
    )
    inline(a, x)
    assert "merged-products" not in inline.report.rules  # not bound: put together at each call
    model = lepton.compile(on_the_left, a, x, passes="cleanup,merge-products{most=100000}")
    assert "merged-products" not in model.report().passes.rules  # `a` is read as it is too
    for found, expected in zip(model(x), on_the_left(a, x), strict=True):
        np.testing.assert_allclose(found, expected, 1e-4, 1e-4)

    def two(params: Any, x: Any) -> Any:
        return params["a"] @ x, params["b"] @ x

    small = lepton.compile(two, a, x, passes="cleanup,merge-products{most=640}")
    assert small.report().passes.rules["merged-products"] == 1
    large = lepton.compile(two, a, x, passes="cleanup,merge-products{most=639}")
    assert "merged-products" not in large.report().passes.rules
    for found, expected in zip(small(x), large(x), strict=True):
        np.testing.assert_allclose(found, expected, 1e-5, 1e-5)
