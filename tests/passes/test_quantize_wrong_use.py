"""Wrong use has an error that names what is wrong, at every way into quantisation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import lepton_jax as lepton
from lepton_jax.numerics.cache import encode_cache, with_coded_cache
from lepton_jax.rewrite import PipelineError, UsageError
from tests.passes._quantize import floats

X = floats(4, 32)
PARAMS = {"up": floats(32, 48, scale=0.2), "bias": jnp.zeros(48), "down": floats(48, 32, scale=0.2)}
SPOILED = {**PARAMS, "up": PARAMS["up"].at[0, 0].set(jnp.nan)}
STATIC, DYNAMIC = (f"cleanup,quantize{{activations={kind}}}" for kind in ("static", "dynamic"))
LEARNED = "cleanup,quantize{weights=int4,train=lsq}"


def network(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["up"] + params["bias"]) @ params["down"]


def loss(params: Any, x: Any) -> Any:
    return (network(params, x) ** 2).mean()


def calibrated(batches: Any, params: Any = PARAMS) -> Any:
    return lepton.compile(network, params, X, passes=STATIC, calibration=batches)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "calibration is empty"),
        (X, r"not one array: say calibration=\[x\] if it is one batch"),
        ({"x": X}, "each a tuple of the inputs after the parameters, not dict"),
        ("data", "not str"),
        (3, "not int"),
        (["words"], "batch 0 holds str where an array is wanted"),
        ([jax.ShapeDtypeStruct((4, 32), jnp.float32)], "batch 0 has shapes"),
        ([X, X[:, :3]], r"batch 1 does not fit the function \(float32\[4,3\]\); a batch is a tuple"),
        ([X[:0]], "params/up: calibration saw no number"),
        (
            [X, X.astype(jnp.int32)],
            "calibration batch 1 has int32 where the sample has float32",
        ),
        ([X.at[0, 0].set(jnp.nan)], "params/up: calibration saw 1 NaN"),
    ],
)
def test_calibration(batches: Any, message: str) -> None:
    with pytest.raises(lepton.CalibrationError, match=message):
        calibrated(batches)
    if "saw" not in message and "sample" not in message:
        with pytest.raises(
            lepton.CalibrationError, match=message.replace("calibration", "(data|calibration)")
        ):
            lepton.sensitivity(
                network, PARAMS, X, data=batches, passes="cleanup,quantize{activations=static}"
            )


def test_weights_that_are_not_finite_are_named_where_they_spoil_calibration() -> None:
    """The first site whose inputs they spoil is another one."""
    with pytest.raises(
        lepton.CalibrationError, match=r"params/up has NaN or infinite elements \(params/down"
    ):
        calibrated([X], SPOILED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("weights=fp8_e4m3,symmetric=false", "fp8_e4m3 has no zero points"),
        ("weights=nf4,symmetric=false,method=hqq", "nf4 has no zero points"),
        ("weights=mxfp4,group=16", "mxfp4 has blocks of 32 by definition: leave group=16 out"),
        ("per=tensor,group=16", "per=tensor is one scale and group=16 many"),
        ("activation_format=int4", "say activations=dynamic or static"),
        ('scope="("', r"scope='\(' is no regular expression"),
    ],
)
def test_options_that_do_not_go_together(options: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        lepton.compile(network, PARAMS, X, passes=f"cleanup,quantize{{{options}}}")


def test_parameters_of_another_structure() -> None:
    f = lepton.optimize(network, DYNAMIC, params="params")
    prepared = f.prepare(PARAMS, X)
    nothing: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: f.prepare({"params": PARAMS}, X),
            "without params/bias, params/down, params/up; with params/params",
        ),
        (lambda: f.prepare({**PARAMS, "up": X}), "with other shapes or dtypes of params/up"),
        (
            lambda: f.apply(prepared.with_arrays(prepared.arrays[:2]), X),
            "arrays were prepared, and 2 are given",
        ),
        (
            lambda: f.apply(jax.tree.map(lambda a: a * 1.0, prepared), X),
            r"up#2 is float32\[.*int8\[.* is wanted",
        ),
    ]
    for call, message in nothing:
        with pytest.raises(lepton.PrepareError, match=message):
            call()
    with pytest.raises(
        TypeError, match="apply takes params as prepared, then the other arguments alone; got 2"
    ):
        f.apply(prepared, PARAMS, X)
    for wrong in (3.5, PARAMS):
        with pytest.raises(TypeError, match="by name, position or path"):
            lepton.optimize(network, DYNAMIC, params=wrong)  # type: ignore[call-overload]


def test_prepare_is_traced() -> None:
    f = lepton.optimize(network, DYNAMIC, params="params")
    traced = jax.jit(lambda params: f.apply(f.prepare(params, X), X))(PARAMS)
    assert jnp.allclose(traced, f.apply(f.prepare(PARAMS, X), X), atol=1e-5)


def test_metrics() -> None:
    for metric, message in (
        (lambda found, _: found, r"of shape \(4, 32\)"),
        (lambda *_: jnp.nan, "it gave nan"),
    ):
        with pytest.raises(UsageError, match=message):
            lepton.sensitivity(network, PARAMS, X, data=[X], passes="quantize{weights=int4}", metric=metric)


def test_training() -> None:
    with pytest.raises(UsageError, match="no pass trains"):
        lepton.trainable(loss, PARAMS, X, passes="cleanup,quantize{weights=int4}")
    f = lepton.trainable(loss, PARAMS, X, passes=LEARNED)
    with pytest.raises(UsageError, match=re.escape("they differ in params/down, params/up")):
        f({**f.params, "learned": {}}, X)
    diverged = {**f.params, "learned": jax.tree.map(lambda a: a * jnp.nan, f.params["learned"])}
    with pytest.raises(lepton.PrepareError, match="what was learned of params/down has NaN"):
        f.compile(diverged)


def test_caches_and_attention_that_are_not_there_are_said() -> None:
    def step(x: Any, cache: Any) -> Any:
        return x.sum(), jax.lax.dynamic_update_slice(cache, x, (0, 0))

    f = lepton.optimize(step, "kv-cache,quantize-attention")
    f(jnp.ones((1, 4)), jnp.zeros((8, 4)))
    notes = " ".join(f.report.notes)
    assert "no loop carries one" in notes and "no attention is found" in notes
    with pytest.raises(TypeError, match=r"holds no codes: give it encode_cache\(cache\)"):
        with_coded_cache(step)(jnp.ones((1, 4)), jnp.zeros((8, 4)))
    with pytest.raises(ValueError, match="not in int4"):
        encode_cache(jnp.zeros((8, 4)), "int4")
