"""Bias correction, and the divisions of SmoothQuant and AWQ taken into what stands in front."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from tests.passes._quantize import RNG, floats

NUMBERS = ("NHWC", "HWIO", "NHWC")
SPREAD = jnp.asarray(np.geomspace(0.1, 10.0, 16), jnp.float32)


def corrected(p: Any, x: Any) -> Any:
    """Products with a bias and without, on either side, in a loop, and a grouped convolution."""
    h = x @ p["a"] + p["bias"]
    left = jnp.einsum("kn,bk->nb", p["b"], x)
    _, looped = jax.lax.scan(lambda c, w: (c, x @ w), 0, p["stack"])
    image = jnp.broadcast_to(x[:, None, None, :], (*x.shape[:1], 4, 4, x.shape[1]))
    kernel = jax.lax.conv_general_dilated(
        image, p["kernel"], (2, 2), "VALID", dimension_numbers=NUMBERS, feature_group_count=2
    )
    return {"bias": h, "left": left, "loop": looped, "convolution": kernel}


CORRECTED: dict[str, Any] = {
    "a": floats(16, 12),
    "bias": floats(12),
    "b": floats(16, 10),
    "stack": floats(2, 16, 8),
    "kernel": floats(2, 2, 8, 6),
}


def test_means_of_results_are_those_of_floats() -> None:
    batches = [jnp.asarray(RNG.normal(1.0, 0.3, (64, 16)), jnp.float32) for _ in range(2)]
    every = jnp.concatenate(batches)
    exact = jax.jit(corrected)(CORRECTED, every)
    off: dict[str, dict[str, float]] = {}
    axes: dict[str, tuple[int, ...]] = {"bias": (0,), "left": (1,), "loop": (1,), "convolution": (0, 1, 2)}
    for correct in ("none", "bias"):
        passes = f"cleanup,quantize{{weights=int3,correct={correct}}}"
        model = lepton.compile(
            corrected,
            CORRECTED,
            every,
            passes=passes,
            strict=True,
            calibration=batches if correct == "bias" else None,
        )
        found = model(every)
        off[correct] = {
            name: float(np.abs(np.mean(found[name] - exact[name], axis)).max()) for name, axis in axes.items()
        }
    assert model.report().passes.rules["corrected-bias"] == 4
    for name in exact:
        assert off["bias"][name] < 1e-3 < 20e-3 < off["none"][name], (name, off)
    program = model.jit.trace(model.params, every).jaxpr
    adds = [e for e in program.eqns if str(e.primitive) == "add" and e.outvars[0].aval.shape == (128, 12)]
    assert len(adds) == 1  # into the bias that was there
    with pytest.raises(lepton.UsageError, match="needs calibration"):
        lepton.compile(corrected, CORRECTED, every, passes="cleanup,quantize{correct=bias}")


def rms(x: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def balanced(p: Any, x: Any) -> Any:
    """Products behind a norm with a gain, an attention, a ReLU, a gate, and what takes nothing in."""
    n = rms(x) * p["gain"] + p["shift"]
    scores = jax.nn.softmax(n @ p["q"] @ (n @ p["k"]).swapaxes(-1, -2))
    h = (scores @ (n @ p["v"])) @ p["o"]
    h = jnp.maximum(0.0, h @ p["up"] + p["bias"]) @ p["down"]
    h = (jax.nn.sigmoid(h @ p["gate"]) * (h @ p["value"])) @ p["last"]
    return jnp.tanh(h) @ p["end"]


def divisions(model: Any, x: Any) -> int:
    """How often numbers of each call are multiplied by one for each channel."""
    kept = [e for e in model.jit.trace(model.params, x).jaxpr.eqns if str(e.primitive) in ("mul", "div")]
    return sum({getattr(v.aval, "shape", ()) for v in e.invars} == {x.shape, (1, 1, 16)} for e in kept)


def test_divisions_are_taken_into_what_makes_the_input() -> None:
    params: dict[str, Any] = {
        name: floats(16, 16, scale=0.3)
        for name in ["q", "k", "v", "o", "up", "down", "gate", "value", "last", "end"]
    }
    params |= {"gain": SPREAD, "shift": floats(16), "bias": floats(16)}
    x = floats(2, 6, 16)
    exact = jax.jit(balanced)(params, x)
    errors: dict[str, float] = {}
    factors: dict[str, int] = {}
    for balance in ("none", "smoothquant", "awq"):
        passes = f"cleanup,quantize{{activations=static,balance={balance}}}"
        model = lepton.compile(balanced, params, x, passes=passes, calibration=[x], strict=True)
        errors[balance] = float(jnp.linalg.norm(model(x) - exact) / jnp.linalg.norm(exact))
        factors[balance] = divisions(model, x)
        rules = model.report().passes.rules
        if balance != "none":
            assert rules["balanced-input"] == 7  # q, k and v share one, gate and value another
            assert factors[balance] == factors["none"] + 1, factors  # in front of `end`, behind tanh
            assert errors[balance] < 0.2, errors


def test_a_shift_goes_into_readers_of_which_one_has_no_bias() -> None:
    """Its addition takes the place of the one that is saved; then the gain can go too."""

    def heads(p: Any, x: Any) -> Any:
        n = rms(x) * p["gain"] + p["shift"]
        return n @ p["q"] + p["a"], n @ p["k"], n @ p["v"] + p["b"]

    def bare(p: Any, x: Any) -> Any:
        n = rms(x) + p["shift"]
        return n @ p["q"], n @ p["k"]

    p: dict[str, Any] = {name: floats(16, 16) for name in "qkv"} | {name: floats(16) for name in "ab"}
    p |= {"gain": SPREAD, "shift": floats(16)}
    x = floats(5, 16)
    model = lepton.compile(heads, p, x, passes="cleanup,absorb", strict=True)
    assert model.report().passes.rules["scale-and-shift-into-readers"] == 2
    for a, b in zip(model(x), heads(p, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    report = lepton.compile(bare, p, x, passes="cleanup,absorb", strict=True).report()
    assert "scale-and-shift-into-readers" not in report.passes.rules
