"""Weights in `shard_map`: each device quantises its part, and calibration sees what all devices see."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from tests.passes._quantize import done, reasons, sqnr

MESH = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4], axis_types=(AxisType.Auto,) * 2)
SHAPES = {"whole": (8, 8), "layers": (2, 8, 8), "up": (8, 16), "bias": (16,), "down": (16, 4)}
RNG = np.random.default_rng(0)
PARAMS = {name: RNG.normal(0, 0.4, shape).astype("f") for name, shape in SHAPES.items()}
X = RNG.normal(0, 1, (4, 8)).astype("f")
X[3] *= 4  # the second half of the rows has a range of its own
SPECS = {"whole": P(), "layers": P(), "up": P(None, "model"), "bias": P("model"), "down": P("model")}


def body(p: Any, x: Any) -> Any:
    """A product with a whole weight, a loop, and a pair of products that is split over devices."""
    h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ p["whole"], p["layers"])
    h = jnp.tanh(h @ p["up"] + p["bias"])
    return lax.psum(h @ p["down"], "model")


@jax.jit
def whole(p: Any, x: Any) -> Any:
    """The same on one device."""
    h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ p["whole"], p["layers"])
    return jnp.tanh(h @ p["up"] + p["bias"]) @ p["down"]


def spread(check: bool) -> Any:
    def fun(p: Any, x: Any) -> Any:
        inner: Any = jax.shard_map(
            body, mesh=MESH, in_specs=(SPECS, P("data")), out_specs=P("data"), check_vma=check
        )
        return inner(p, x)

    return fun


NAMES = {f"p/{name}" for name in ("whole", "layers", "up", "down")}


def quantised(sites: Any) -> set[str]:
    return {name for name, what in done(sites).items() if what}


def test_each_device_has_codes_of_its_part_and_calibration_sees_what_all_see() -> None:
    """One range for what is spread over rows; one for each part where the weight is split."""
    exact, batches = whole(PARAMS, X), [X, -X[::-1]]
    rounded = 'quantize{only="p/%s",weights=int4,method=gptq,correct=bias}'
    passes = f'default,{rounded % "up"},quantize{{skip="p/up",activations=static}}'
    model = lepton.compile(spread(True), PARAMS, X, passes=passes, calibration=batches, strict=True)
    sites = model.report().passes.sites
    assert quantised(sites) == NAMES
    assert reasons(sites)["p/bias"] == "no product, convolution or gather of rows reads it"
    kept = {name: array for name, array in model.params.items() if array.dtype == jnp.int8}
    assert {name: array.shape for name, array in kept.items()} == {
        "p/whole#2": (1, 8, 8),
        "p/layers#2": (1, 2, 8, 8),
        "p/down#2": (2, 8, 4),
    }
    assert kept["p/down#2"].addressable_shards[0].data.shape == (1, 8, 4)
    halves = [np.abs(PARAMS["down"][8 * i :][:8]).max(0) / 127 for i in (0, 1)]
    np.testing.assert_allclose(np.asarray(model.params["p/down"])[:, 0], np.stack(halves), rtol=1e-6)
    scales = [np.asarray(a) for name, a in model.params.items() if name.startswith("calibration")]
    assert any(a.size == 1 and np.allclose(a, np.abs(X).max() / 127, rtol=1e-6) for a in scales)
    assert any(a.shape == (2,) for a in scales)
    assert sqnr(exact, model(X)) > 24

    passes = f'inline,{rounded % "down"},quantize{{only="p/up",weights=int4,correct=bias}}'
    model = lepton.compile(spread(False), PARAMS, X, passes=passes, calibration=batches, strict=True)
    assert quantised(model.report().passes.sites) == {"p/up", "p/down"}
    codes = model.params["p/up#2"]
    assert codes.shape[0] == 2 and codes.addressable_shards[0].data.size == codes.size // 2
    assert sqnr(exact, model(X)) > 14


def test_calibration_sees_branches() -> None:
    """A branch that is not taken has seen nothing, on all devices."""

    def branch(w: Any, x: Any) -> Any:
        return lax.cond(x.sum() > 1e3, lambda x: x, lambda x: jnp.tanh(x @ w), x)

    def fun(w: Any, x: Any) -> Any:
        inner: Any = jax.shard_map(branch, mesh=MESH, in_specs=(P(), P("data")), out_specs=P("data"))
        return inner(w, x)

    passes = "default,quantize{activations=static}"
    model = lepton.compile(fun, PARAMS["whole"], X, passes=passes, calibration=[X], strict=True)
    assert sqnr(branch(PARAMS["whole"], X), model(X)) > 30


@pytest.mark.parametrize("check", [True, False])
def test_codes_are_made_in_line(check: bool) -> None:
    run = lepton.optimize(spread(check), "default,quantize{activations=dynamic}", params="p", strict=True)
    traced = run.trace(PARAMS, X)
    assert quantised(traced.report.sites) == NAMES
    for part in (r"8,8", r"8,4"):
        assert re.search(rf"i8\[{part}\]\S* = name\[name='lepton.stored'\]", traced.graph.to_text())


def test_rounded_in_line_with_gradients_and_left_on_trial() -> None:
    fun = spread(True)
    f = lepton.optimize(fun, "default,quantize{weights=int4,train=ste}", params="p", strict=True)
    value, slopes = jax.jit(jax.value_and_grad(lambda p: f(p, X).sum()))(PARAMS)
    assert all(np.abs(slope).max() > 0 for slope in slopes.values())
    np.testing.assert_allclose(value, f.apply(f.prepare(PARAMS, X), X).sum(), rtol=1e-4, atol=1e-4)
    with pytest.raises(lepton.CalibrationError, match="p/up: it is read in a shard_map, where weights stay"):
        lepton.sensitivity(fun, PARAMS, X, data=[X], passes="quantize")
    headed = {**PARAMS, "head": PARAMS["down"].T.copy()}
    found = lepton.sensitivity(
        lambda p, x: fun({n: p[n] for n in PARAMS}, x) @ p["head"], headed, X, data=[X], passes="quantize"
    )
    assert [row.name for row in found.rows] == ["p/head"] and {name for name, _ in found.left} >= NAMES
    assert "p/up is not tried: it is read in a shard_map" in str(found)


def test_step_sizes_are_learned_for_each_part() -> None:
    """Those of a weight that is split over columns are those of the whole weight."""
    fun, passes = spread(True), "default,quantize{weights=int4,train=lsq}"
    f, one = (
        lepton.trainable(lambda p, x, run=run: (run(p, x) ** 2).mean(), PARAMS, X, passes=passes, strict=True)
        for run in (fun, whole)
    )
    shapes = {name: each["weight-step"].shape for name, each in f.params["learned"].items()}
    assert shapes == {"p/whole": (1, 1, 8), "p/layers": (1, 2, 1, 8), "p/up": (2, 1, 8), "p/down": (2, 1, 4)}
    learned = {
        **f.params["learned"],
        "p/down": {"weight-step": jnp.stack([one.params["learned"]["p/down"]["weight-step"]] * 2)},
    }
    slopes = jax.grad(f)({**f.params, "learned": learned}, X)
    expected = jax.grad(one)(one.params, X)
    for name, array in PARAMS.items():
        np.testing.assert_allclose(slopes["params"][name], expected["params"][name], 1e-3, 1e-5, err_msg=name)
        assert array.shape == slopes["params"][name].shape
    for name in ("p/whole", "p/layers", "p/up"):
        found, wanted = (each["learned"][name]["weight-step"] for each in (slopes, expected))
        np.testing.assert_allclose(found.reshape(wanted.shape), wanted, 1e-3, 1e-5, err_msg=name)
    model = f.compile(f.params)
    np.testing.assert_allclose(model(X), f(f.params, X), rtol=1e-4)
