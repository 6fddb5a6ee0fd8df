"""Weights in palettes: every use of weights, what is kept, training, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.numerics.palettes import PaletteScheme, decode, palettize

Params = dict[str, jax.Array]


def _arrays() -> tuple[Params, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    params = {
        "table": draw(40, 8),
        "stack": draw(3, 8, 8),
        "kernel": draw(3, 3, 2, 8),
        "out": draw(8, 16) * (rng.random((8, 16)) < 0.5),
    }
    return params, jnp.array([[1, 2, 60]]), draw(1, 4, 4, 2)


def _net(params: Params, rows: jax.Array, image: jax.Array) -> Any:
    """A table that is tied to the last product, stacked layers, a product, and a convolution."""
    x = params["table"][rows]
    x, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["stack"])
    axes = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(image, params["kernel"], (1, 1), "SAME", dimension_numbers=axes)
    return x @ params["table"].T, x @ params["out"], y


def _plain(params: Params, rows: jax.Array, image: jax.Array) -> Any:
    """The same without loops and ties."""
    x = params["table"][rows]
    axes = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(image, params["kernel"], (1, 1), "SAME", dimension_numbers=axes)
    return x @ params["stack"][0] @ params["out"], y


def _rounded(params: Params, scheme: PaletteScheme) -> Params:
    """Each weight as its codes say."""
    made = {name: _one(w, scheme) for name, w in params.items() if name != "stack"}
    return made | {"stack": jnp.stack([_one(w, scheme) for w in params["stack"]])}


def _one(weight: jax.Array, scheme: PaletteScheme) -> jax.Array:
    codes, palette = palettize(weight, scheme)
    return jnp.asarray(decode(np.asarray(codes), np.asarray(palette), scheme))


def _same(model: Any, wanted: Any, *inputs: Any) -> None:
    for found, right in zip(model(*inputs), wanted, strict=True):
        np.testing.assert_allclose(found, right, rtol=2e-5, atol=2e-5)


def test_every_use_and_what_is_kept(tmp_path: Path) -> None:
    params, *inputs = _arrays()
    wanted = jax.jit(_net)(_rounded(params, PaletteScheme(3)), *inputs)
    model = lepton.compile(_net, params, *inputs, passes="deploy,palettize{bits=3}")
    _same(model, wanted, *inputs)
    kept = {str(a.dtype): 0 for a in model.params.values()}
    for array in model.params.values():
        kept[str(array.dtype)] += array.nbytes
    assert kept["uint8"] == (40 * 8 + 3 * 64 + 144 + 128) * 3 // 8  # the tied table once, no gaps
    assert kept["float32"] == (1 + 3 + 1 + 1) * 8 * 4  # a palette for each layer
    text = str(model.report())
    assert "table (gather): 3 bits, per tensor, 1,280 → 152 bytes, error 0." in text
    assert all(name in text for name in ("params/stack", "params/kernel", "params/out"))
    loaded = lepton.compile(_net, params, *inputs, passes="cleanup,palettize{bits=3,lookup=load}")
    _same(loaded, wanted, *inputs)
    assert loaded.nbytes == sum(a.nbytes for a in params.values())
    assert "in files" in str(loaded.report())
    loaded.save(tmp_path / "net.lepton")
    _same(lepton.load(tmp_path / "net.lepton"), wanted, *inputs)
    assert "distinct" in str(lepton.storage.inspect(tmp_path / "net.lepton"))


def test_channels_vectors_and_importance() -> None:
    params, *inputs = _arrays()
    every = 'cleanup,palettize{bits=4,per=channel,group=4,skip="params/stack"}'
    model = lepton.compile(_plain, params, *inputs, passes=every)
    by = {"table": 0, "kernel": 3, "out": 1}
    made = {name: _one(params[name], PaletteScheme(4, axis=axis, group=4)) for name, axis in by.items()}
    plain = jax.jit(_plain)
    _same(model, plain({**params, **made}, *inputs), *inputs)
    assert "params/stack is skipped" in str(model.report())
    both = 'palettize{bits=2,weigh=hessian,only="params/out"},palettize{bits=4,vector=2,zeros=free}'
    model = lepton.compile(_plain, params, *inputs, passes=f"cleanup,{both}", calibration=[tuple(inputs)])
    text = str(model.report())
    assert "kernel (conv_general_dilated): 4 bits, per tensor, vectors of 2" in text
    for made_of, wanted in zip(model(*inputs), plain(params, *inputs), strict=True):
        np.testing.assert_array_equal(np.isnan(made_of), np.isnan(wanted))
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((50, 8)) * [5, 5, 1, 1, 1, 0.1, 0.1, 0.1], jnp.float32)
    w = jnp.asarray(rng.standard_normal((8, 32)), jnp.float32)

    def far(options: str) -> float:
        passes = f"cleanup,palettize{{bits=2,zeros=free{options}}}"
        found = lepton.compile(lambda w, x: x @ w, w, x, passes=passes, calibration=[x] if options else None)
        return float(jnp.linalg.norm(found(x) - x @ w))

    assert far(",weigh=hessian") < far("")


@pytest.mark.parametrize("train", ["centroids", "dkm"])
def test_training(train: str) -> None:
    rng = np.random.default_rng(2)
    w = jnp.asarray(rng.standard_normal((8, 16)) * (rng.random((8, 16)) < 0.5), jnp.float32)
    params = {"w": w, "b": jnp.zeros(16)}
    x = jnp.asarray(rng.standard_normal((32, 8)), jnp.float32)
    y = jnp.tanh(x @ (w * 1.3 + 0.1))

    def net(params: Params, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ params["w"] + params["b"])

    def loss(params: Params, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(net(params, x) - y))

    passes = f"default,palettize{{bits=2,train={train},temperature=1e-6}}"
    f = lepton.trainable(loss, params, x, passes=passes)
    start = f(f.params, x)
    learned = f.params["learned"]
    assert jax.tree.map(jnp.shape, learned) == (
        {"params/w": {"weight-palette": (1, 4, 1)}} if train == "centroids" else {}
    )
    now = f.params
    slope = jax.jit(jax.grad(f))
    for _ in range(5):
        slopes = slope(now, x)
        now = jax.tree.map(lambda p, g: p - 0.1 * g, now, slopes)
    assert float(jnp.abs(slopes["params"]["w"]).max() > 0) == (train == "dkm")
    assert f(now, x) < start
    model = f.compile(now, x, fun=net)
    np.testing.assert_allclose(jnp.mean(jnp.square(model(x) - y)), f(now, x), rtol=1e-4)
    kept = {str(a.dtype): a for a in model.params.values() if a.ndim > 1}
    assert kept["uint8"].nbytes == 8 * 16 // 4
    assert float(kept["float32"][0, 0, 0]) == 0  # zeros stay zero


def test_what_stays_as_it_is() -> None:
    def dot(w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ w

    w, x = jnp.ones((3, 5)), jnp.ones((2, 3))
    odd = lepton.compile(dot, w, x, passes="deploy,palettize{vector=2}")
    assert "no axis of [3, 5] that may be cut is a multiple of vector=2" in str(odd.report())
    np.testing.assert_array_equal(odd(x), x @ w)
    f = lepton.optimize(dot, "default,palettize", params="w")
    with pytest.raises(lepton.UsageError, match=r"lepton\.compile\(function"):
        f.prepare(w, x)
    with pytest.raises(lepton.UsageError, match=r"lepton\.trainable"):
        lepton.optimize(dot, "palettize{train=dkm}", params="w").prepare(w, x)
    with pytest.raises(lepton.CalibrationError, match="NaN or infinite"):
        lepton.compile(dot, w.at[0, 0].set(jnp.nan), x, passes="palettize")
    for wrong in ("bits=9", "group=4", "vector=3", "temperature=0.0"):
        with pytest.raises(lepton.PipelineError, match="palettize"):
            lepton.compile(dot, w, x, passes=f"palettize{{{wrong}}}")
