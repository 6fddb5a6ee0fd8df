"""Training with quantisation: what is rounded, what gradients it has, and what it converts to."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.numerics import Scheme, quantize, straight_through
from lepton_jax.numerics.learned import scale_and_zero
from lepton_jax.numerics.quantize import encode
from tests.passes._quantize import Case, done, floats, joined, kept_of, reasons

K, N, B = 16, 12, 8


def layers(ws: Any, x: Any) -> Any:
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0]


def convolution(w: Any, x: Any) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=2)


def tied(table: Any, tokens: Any) -> Any:
    return jnp.tanh(table[tokens]) @ table.T


def branches(w: Any, x: Any) -> Any:
    return lax.cond(x.sum() > 1e9, lambda h: h @ w, lambda h: h @ w * 2, x)


CASES = {
    "product": Case(lambda w, x: x @ w, floats(K, N), floats(B, K)),
    "left": Case(lambda w, x: w @ x, floats(N, K), floats(K, B)),
    "scan": Case(layers, floats(3, K, K, scale=0.3), floats(B, K)),
    "checkpoint": Case(jax.checkpoint(lambda w, x: jnp.sin(x @ w)), floats(K, N, scale=0.1), floats(B, K)),
    "convolution": Case(convolution, floats(3, 3, 2, 6), floats(2, 5, 5, 4)),
    "tied": Case(tied, floats(20, K), jnp.array([[1, 7, 19]])),
    "cond": Case(branches, floats(K, N), floats(B, K)),
}

OPTIONS = {
    "weights=int4,activations=static,train=lsq": ("product", "checkpoint", "scan", "cond"),
    "weights=int4,activations=dynamic,train=ste": ("product", "tied", "cond"),
    "weights=int3,group=8,store=small,train=tqt": ("product", "tied"),
    "weights=int8,activations=static,train=pact": ("left", "convolution"),
    "weights=int4,symmetric=false,train=lsq": ("product", "scan"),
    "weights=fp8,activations=dynamic,train=lsq": ("left",),
    "weights=mxfp4,train=lsq": ("product",),
}
"""What is trained, and in which of the programs."""


@pytest.mark.parametrize(("options", "names"), OPTIONS.items())
def test_every_use_trains_and_converts(options: str, names: tuple[str, ...]) -> None:
    """Weights and learned numbers have gradients; the converted model computes what the last forward did."""
    fun, params, x = joined({name: CASES[name] for name in names})
    calibration = [x] if "static" in options else None
    passes = f"inline,movement,quantize{{{options}}}"
    f = lepton.trainable(fun, params, x, passes=passes, calibration=calibration, strict=True)

    @jax.jit
    def step(trained: Any) -> Any:
        def loss(trained: Any) -> Any:
            return sum(jnp.mean((y - 0.1) ** 2) for y in f(trained, x).values())

        slopes = jax.grad(loss)(trained)
        moved = jax.tree.map(lambda value, slope: value - 0.01 * slope, trained, slopes)
        return slopes, moved, f(moved, x)

    slopes, moved, rounded = step(f.params)
    for path, slope in jax.tree_util.tree_flatten_with_path(slopes)[0]:
        assert np.isfinite(slope).all(), path
        assert np.abs(slope).max() > 0 or "pact" in options, path  # what clips nothing has no slope
    stays = "cond" in names and "train=lsq" in options
    assert set(reasons(f.report.sites)) == ({"params/cond", "params/cond#2"} if stays else set())
    model = f.compile(moved, x)
    assert done(model.fun.report.sites) == done(f.report.sites)
    for name, y in model(x).items():
        np.testing.assert_allclose(rounded[name], y, rtol=2e-4, atol=2e-5, err_msg=name)
    if "tied" in names:
        tables = [a for a in kept_of(model.params, "tied") if a.size >= 20 * K // 4]
        assert len(tables) == 1, "a tied table is one array of codes"
    if "checkpoint" in names:
        check_steps(model.params, moved)


def check_steps(prepared: lepton.Prepared, trained: Any) -> None:
    """Assert that codes and scales are what the trained weights are under the trained step sizes."""
    scheme = Scheme("int4", shared=(0,))

    def codes_of(weight: Any, step: Any) -> Any:
        scale, _ = scale_and_zero("step", (step,), scheme)
        return encode(weight, scale, None, scheme), scale

    for name, many in (("product", False), ("checkpoint", False), ("scan", True)):
        weight, step = trained["params"][name], trained["learned"][f"params/{name}"]["weight-step"]
        codes, scale = (jax.vmap(codes_of) if many else codes_of)(weight, step)
        assert any(a.dtype == jnp.int8 and turned_equal(a, codes) for a in kept_of(prepared, name)), name
        alike = [a for a in prepared.arrays if a.size == scale.size]
        assert any(np.array_equal(np.ravel(a), np.ravel(scale)) for a in alike), name


def turned_equal(found: Any, expected: Any) -> bool:
    """Whether two arrays are equal, or one is the other with its last axes swapped."""
    return np.array_equal(found, expected) or np.array_equal(found, jnp.swapaxes(expected, -1, -2))


def two_layers(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def data() -> tuple[Any, Any, Any]:
    params = {"up": floats(K, 32, scale=0.3), "down": floats(32, 4, scale=0.2)}
    x = floats(64, K)
    return params, x, jnp.sin(x[:, :4] * 2)


def test_in_line_it_is_straight_through_and_prepared_it_is_codes() -> None:
    params, x, _ = data()
    passes = "inline,quantize{weights=int4,activations=dynamic,train=ste}"
    f = lepton.optimize(two_layers, passes, params="params", strict=True)

    def by_hand(params: Any, x: Any) -> Any:
        for name, then in (("up", jax.nn.relu), ("down", lambda x: x)):
            w = straight_through(params[name], Scheme("int4", shared=(0,)))
            x = then(straight_through(x, Scheme("int8", shared=(1,))) @ w)
        return x

    def total(fun: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda p: (fun(p, x) ** 2).sum()))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), total(f), total(by_hand)
    )
    prepared = f.prepare(params, x)
    for name in ("up", "down"):
        codes, scale, _ = quantize(params[name], Scheme("int4", shared=(0,)))
        kept = [a for key, a in prepared.items() if key.startswith(f"params/{name}")]
        assert any(a.dtype == jnp.int8 and turned_equal(a, codes) for a in kept), name
        assert any(a.size == scale.size and np.array_equal(np.ravel(a), np.ravel(scale)) for a in kept), name
    np.testing.assert_allclose(f.apply(prepared, x), f(params, x), rtol=1e-4, atol=1e-4)


def test_a_loss_is_trained_with_optax_and_logits_are_converted() -> None:
    """Learned steps do better than rounding what was trained in floats; frozen leaves stay."""
    params, x, y = data()
    params["shift"], params["count"] = jnp.full(4, 0.5), jnp.array(3)

    def logits(params: Any, x: Any) -> Any:
        return two_layers(params, x) + params["shift"] * params["count"]

    def loss(params: Any, x: Any, y: Any) -> Any:
        return jnp.mean((logits(params, x) - y) ** 2)

    passes = "default,quantize{weights=int3,activations=static,train=lsq}"
    f = lepton.trainable(
        loss, params, x, y, passes=passes, calibration=[(x, y)], frozen="params/shift", strict=True
    )
    assert f.params["params"]["shift"] is None and f.params["params"]["count"] is None
    rates = {"params": optax.adamw(1e-2), "learned": optax.adam(1e-3)}
    tx = optax.multi_transform(rates, {"params": "params", "learned": "learned"})

    @functools.partial(jax.jit, donate_argnums=0)
    def train(trained: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            trained, state = carry
            value, slopes = jax.value_and_grad(f)(trained, x, y)
            updates, state = tx.update(slopes, state, trained)
            return (optax.apply_updates(trained, updates), state), value

        (trained, _), values = lax.scan(step, (trained, tx.init(trained)), length=80)
        return trained, values

    trained, values = train(jax.tree.map(jnp.copy, f.params))
    assert values[-1] < 0.6 * values[0]

    late = jax.jit(lambda number: jax.value_and_grad(f.delayed(number, 40))(f.params, x, y))
    (before, slopes), (after, _) = late(39), late(40)
    assert float(before) == pytest.approx(float(loss(params, x, y)), rel=1e-5)
    assert float(after) == pytest.approx(float(values[0]), rel=1e-5) and after != pytest.approx(float(before))
    assert not any(jnp.any(slope) for slope in jax.tree.leaves(slopes["learned"]))

    model = f.compile(trained, x, fun=logits)
    assert float(jnp.mean((model(x) - y) ** 2)) == pytest.approx(float(f(trained, x, y)), rel=1e-4)
    assert {a.dtype for a in model.params.arrays if a.size > 32} == {jnp.dtype(jnp.int8)}
    many = jax.jit(jax.vmap(f, (None, 0, 0)))(trained, jnp.stack([x, x]), jnp.stack([y, y]))
    np.testing.assert_allclose(many, f(trained, x, y), rtol=1e-4)

    def renamed(weights: Any, x: Any) -> Any:
        return logits(weights, x)

    with pytest.raises(lepton.UsageError, match="does not use params/down"):
        f.compile(trained, x, fun=renamed)
    with pytest.raises(lepton.UsageError, match="not the parameters that are trained"):
        f({**trained, "params": {"up": None}}, x, y)


def test_several_passes_each_train_what_they_take() -> None:
    params, x, _ = data()
    passes = 'inline,quantize{only="params/up",weights=int4,train=lsq},quantize{train=ste}'
    f = lepton.trainable(two_layers, params, x, passes=passes, strict=True)
    f(f.params, x)
    assert done(f.report.sites) == {
        "params/up": "int4, per channel, lsq",
        "params/down": "int8, per channel, ste",
    }
    assert list(f.params["learned"]) == ["params/up"]


def test_wrong_use() -> None:
    params, x, _ = data()

    def step(params: Any, x: Any) -> Any:
        return jax.grad(lambda p: two_layers(p, x).sum())(params)

    def trainable(fun: Any, options: str, **more: Any) -> Any:
        return lepton.trainable(fun, params, x, passes=f"inline,quantize{{{options}}}", **more)

    with pytest.raises(lepton.UsageError, match="rewrite the loss, and differentiate that"):
        trainable(step, "train=lsq")
    with pytest.raises(lepton.CalibrationError, match=re.escape("needs calibration for params/up")):
        trainable(two_layers, "activations=static,train=lsq")
    with pytest.raises(lepton.UsageError, match=r"lepton\.trainable"):
        lepton.optimize(two_layers, "quantize{train=lsq}", params="params")(params, x)
    with pytest.raises(lepton.UsageError, match="frozen"):
        trainable(two_layers, "train=lsq", frozen="params/nothing")
    with pytest.raises(lepton.UsageError, match="nothing to train"):
        trainable(two_layers, "train=lsq", frozen="params")
    with pytest.raises(lepton.CalibrationError, match="params/up has NaN"):
        bad = {**params, "up": params["up"].at[0, 0].set(jnp.nan)}
        lepton.trainable(two_layers, bad, x, passes="quantize{train=lsq}")
    with pytest.raises(ValueError, match="goes without method"):
        trainable(two_layers, "train=lsq,method=hqq")
