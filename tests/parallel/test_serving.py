"""Prepared parameters on a mesh: the quantised model of one device, laid out as asked."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from lepton_jax._prepared import PrepareError
from tests.api_programs import Breaks

DEVICES = jax.devices()[:4]
AUTO = jax.make_mesh((2, 2), ("data", "model"), devices=DEVICES, axis_types=(AxisType.Auto,) * 2)
EXPLICIT = jax.make_mesh((2, 2), ("data", "model"), devices=DEVICES, axis_types=(AxisType.Explicit,) * 2)
RNG = np.random.default_rng(0)
INT8 = "default,quantize{weights=int8,activations=dynamic}"


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


PARAMS = {"layers": {"up": normal(2, 16, 32) * 0.3, "down": normal(2, 32, 16) * 0.3}, "out": normal(16, 8)}
X = normal(8, 16)


def model(params: Any, x: Any) -> Any:
    def layer(x: Any, w: Any) -> Any:
        return x + jax.nn.relu(x @ w["up"]) @ w["down"], None

    return jax.lax.scan(layer, x, params["layers"])[0] @ params["out"]


ABSTRACT = AbstractMesh((2, 2), ("data", "model"))
SHAPES = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (PARAMS, X))
ONE = lepton.compile(model, PARAMS, X, passes=INT8)
Y = np.asarray(ONE(X))


def specs(prepared: Any) -> dict[str, P]:
    assert all(isinstance(array.sharding, NamedSharding) for array in prepared.values())
    return {name: array.sharding.spec for name, array in prepared.items()}


def same_codes(prepared: Any, one: Any = None) -> None:
    """The very arrays of one device."""
    for name, array in (ONE.params if one is None else one).items():
        np.testing.assert_array_equal(np.asarray(prepared[name]), np.asarray(array), err_msg=name)


def close(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=1e-5, atol=1e-5)


def test_a_preset_lays_out_codes_and_scales_and_the_results_are_those_of_one_device() -> None:
    f = lepton.optimize(model, INT8, params="params", mesh=AUTO, shard="tp")
    prepared = f.prepare(PARAMS, X)
    same_codes(prepared)
    assert specs(prepared) == {
        "params/layers/up": P(None, None, "model"),
        "params/layers/up#2": P(None, None, "model"),
        "params/layers/down": P(),
        "params/layers/down#2": P(None, "model"),
        "params/out": P(None, "model"),
        "params/out#2": P(None, "model"),
    }
    got = f.apply(prepared, X)
    close(got, Y)
    assert got.sharding.spec == P("data", "model")
    held = prepared["params/layers/up#2"].addressable_shards[0].data
    assert held.shape == (2, 16, 16) and held.dtype == np.int8
    plan = f.plan(prepared, X)
    assert "params/layers/up#2" in str(plan)
    text = f.jit_of(prepared).lower(prepared, X).compile().as_text()
    assert "s8[16,16]" in text and "s8[16,32]" not in text  # no device has the whole of a layer's codes
    assert "written into the program" in str(f.report) and "quantize" in str(f.report)
    half = f.apply(prepared, X[:4])  # other shapes: the arrays stay where they are
    close(half, Y[:4])
    restored = prepared.with_arrays([np.asarray(array) for array in prepared.arrays])
    close(f.apply(restored, X), Y)
    each = jax.jit(lambda kept, x: jax.vmap(lambda x: f.apply(kept, x[None])[0])(x))
    close(each(prepared, X), Y)


def test_patterns_are_those_of_the_parameters() -> None:
    shard = {"params/layers/up": (None, None, "model"), ".../down": (None, "model"), "x": "data"}
    f = lepton.optimize(model, INT8, params="params", mesh=EXPLICIT, shard=shard)
    lying = jax.device_put(PARAMS, NamedSharding(AUTO, P()))
    prepared = f.prepare(lying, X)
    same_codes(prepared)
    assert specs(prepared)["params/layers/up#2"] == specs(prepared)["params/layers/up"]
    assert specs(prepared)["params/layers/up"] == P(None, None, "model")
    assert specs(prepared)["params/layers/down#2"] == P(None, "model")
    close(f.apply(prepared, X), Y)
    wrong = lepton.optimize(model, INT8, params="params", mesh=AUTO, shard={"params/layers/dwon": "model"})
    with pytest.raises(ValueError, match="'params/layers/dwon' matches none of the arrays params/layers/do"):
        wrong.prepare(PARAMS, X)


def test_where_the_parameters_lie_counts() -> None:
    placed = {
        "layers": jax.device_put(PARAMS["layers"], NamedSharding(AUTO, P(None, None, "model"))),
        "out": PARAMS["out"],
    }
    f = lepton.optimize(model, INT8, params="params", mesh=AUTO)
    prepared = f.prepare(placed, X)
    same_codes(prepared)
    assert specs(prepared)["params/layers/down#2"] == P(None, None, "model")
    close(f.apply(prepared, X), Y)


def test_packed_codes_that_cannot_be_split_are_told() -> None:
    passes = "default,quantize{weights=int4,group=8}"
    one = lepton.compile(model, PARAMS, X, passes=passes)
    shard = {"params/layers/up": (None, None, "model"), "x": "data"}
    served = lepton.compile(model, PARAMS, X, passes=passes, mesh=AUTO, shard=shard)
    same_codes(served.params, one.params)
    close(served(X), one(X))
    note = "params/layers/up shall lie as [-, -, model]; what is kept of it, params/layers/up#2"
    assert note in str(served.plan(X)) and note in str(served.report())
    f = lepton.optimize(model, passes, params="params", mesh=ABSTRACT, shard="tp")
    prepared = f.prepare(*SHAPES)
    plan = f.plan(prepared, X)
    (note,) = (
        each for each in plan.notes if each.startswith("params/layers/up#2 is whole over the model's ")
    )
    assert "has packed codes: a byte holds those of several parts of a row" in note
    kept = one.params["params/layers/up#2"]
    assert prepared["params/layers/up#2"].sharding.shard_shape(kept.shape) == kept.shape


def test_a_compiled_model_solved_and_saved(tmp_path: Any) -> None:
    cache = np.zeros((8, 16), np.float32)

    def step(params: Any, cache: Any, x: Any) -> Any:
        cache = cache * 0.5 + x
        return cache, model(params, cache)

    served = lepton.compile(
        step, PARAMS, cache, X, passes=INT8, mesh="data=2", shard="auto", donate="auto", memory="1GB"
    )
    kept, result = served(cache, X)
    close(result, Y)
    assert len(kept.sharding.device_set) == 2
    served(kept, X)
    assert kept.is_deleted()
    assert "solver" in str(served.plan(cache, X))
    served.save(tmp_path / "m.lepton")
    loaded = lepton.load(tmp_path / "m.lepton")  # runs on one device
    close(loaded(cache, X)[1], Y)


def test_products_of_one_input_stay_apart() -> None:
    weights = {name: jax.ShapeDtypeStruct((16, 16), "float32") for name in ("k", "q", "v")}

    def heads(weights: Any, x: Any) -> Any:
        return [x @ w for w in weights.values()]

    f = lepton.optimize(heads, INT8, params="weights", mesh=AUTO, shard="tp")
    codes = f.prepare(weights, X)
    assert {n: a.shape for n, a in codes.items() if a.dtype == "int8"} == {
        f"weights/{name}#2": (16, 16) for name in weights
    }  # one device has one product of (16, 48)


def test_a_plan_without_arrays_or_devices() -> None:
    f = lepton.optimize(model, INT8, params="params", mesh=ABSTRACT, shard="tp")
    prepared = f.prepare(*SHAPES)
    assert prepared["params/layers/up#2"].sharding.spec == P(None, None, "model")
    assert "int8[2,16,32]" in str(f.plan(prepared, X))
    with pytest.raises(ValueError, match="abstract mesh, which has no devices"):
        f.prepare(PARAMS, X)
    with pytest.raises(PrepareError, match="some parameters and the shapes of others"):
        f.prepare({**PARAMS, "out": SHAPES[0]["out"]}, X)
    with pytest.raises(PrepareError, match="apply takes what prepare returned, not dict"):
        f.apply(PARAMS, X)  # type: ignore[arg-type]
    local = lepton.Sharding({"x": "data"}, local="params")
    with pytest.raises(PrepareError, match="each process prepares whole parameters"):
        lepton.optimize(model, INT8, params="params", mesh=AUTO, shard=local).prepare(PARAMS, X)


def test_verify_and_measure_on_a_mesh(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path))

    def fun(w: Any, x: Any) -> Any:
        return jax.numpy.sin(x @ w) * 1.0, x * 2.0

    w = PARAMS["out"]
    f = lepton.optimize(fun, mesh=AUTO, shard="tp", params="w", verify=True, measure=True, donate_argnums=1)
    jax.tree.map(close, f(w, X), fun(w, X))
    notes = " ".join(f.report.notes)
    assert "verify: against one device: equal" in notes and "measure:" in notes and "over the mesh" in notes
    again = lepton.optimize(fun, mesh=AUTO, shard="tp", params="w", measure=True, donate_argnums=1)
    jax.tree.map(close, again(w, X), fun(w, X))
    assert "measured before on this machine" in " ".join(again.report.notes)
    wrong = lepton.optimize(fun, lepton.Pipeline((Breaks(),)), mesh=AUTO, shard="tp", params="w", verify=True)
    for _ in range(2):
        got = wrong(w, X)
        jax.tree.map(close, got, fun(w, X))
        assert len(got[0].sharding.device_set) == 4
    assert "the plain program over the mesh is kept" in " ".join(wrong.report.notes)
    jax.tree.map(close, jax.jit(f)(w, X), fun(w, X))
