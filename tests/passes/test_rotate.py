"""Rotations: the same numbers, in programs whose weights have another basis."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from tests.passes._quantize import RNG, floats

WIDTH = 16


def rms(x: Any, gain: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain


def layer_norm(x: Any, gain: Any, shift: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum(0.0, jnp.mean(x * x, -1, keepdims=True) - mean * mean)
    return (x - mean) * (jax.lax.rsqrt(variance + 1e-6) * gain) + shift


def gain() -> jax.Array:
    return jnp.asarray(RNG.uniform(0.2, 3.0, WIDTH), jnp.float32)


PARAMS: dict[str, Any] = {
    "table": floats(32, WIDTH),
    "positions": floats(6, WIDTH),
    "gains": [gain(), gain(), gain()],
    "shifts": [floats(WIDTH), floats(WIDTH), floats(WIDTH)],
    "up": floats(WIDTH, 32, scale=0.25),
    "bias": floats(32),
    "down": floats(32, WIDTH, scale=0.2),
    "out": floats(WIDTH, scale=0.1),
    "stack": floats(3, WIDTH, WIDTH, scale=0.25),
}
TOKENS = jnp.asarray(RNG.integers(0, 32, (2, 6)))


def by_rms(p: Any, tokens: Any) -> Any:
    """Root mean square norms with gains, and a loop over layers."""
    h = jax.vmap(jax.vmap(lambda i: p["table"][i]))(tokens)  # as Equinox writes it
    h = h + jax.nn.gelu(rms(h, p["gains"][0]) @ p["up"] + p["bias"]) @ p["down"] + p["out"]
    h, _ = jax.lax.scan(lambda h, w: (h + jnp.tanh(rms(h, 1.0) @ w) @ w.T, None), h, p["stack"])
    return rms(h, p["gains"][1]) @ p["table"].T


def by_layer_norm(p: Any, tokens: Any) -> Any:
    """Layer norms, of two forms, and a tied head."""
    h = p["table"][tokens] + p["positions"]
    n = layer_norm(h, p["gains"][0], p["shifts"][0])
    h = h + jax.nn.gelu(n @ p["up"]) @ p["down"] + p["out"]
    n = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)
    return (n * p["gains"][1] + p["shifts"][1]) @ p["table"].T


LEFT = {
    "it is a result": lambda p, t: (rms(p["table"][t], 1.0) @ p["up"], p["table"][t]),
    "tanh reads it": lambda p, t: rms(p["table"][t], 1.0) @ p["up"] + jnp.tanh(p["table"][t]) @ p["up"],
    "its mean is used": lambda p, t: (
        layer_norm(p["table"][t], 1.0, 0.0) @ p["up"] + p["table"][t].mean(-1, keepdims=True)
    ),
    "read with its mean": lambda p, t: (
        layer_norm(p["table"][t], 1.0, 0.0) @ p["up"] + p["table"][t] @ p["up"]
    ),
    "scaled along it": lambda p, t: rms(p["table"][t] * p["gains"][0], 1.0) @ p["up"],
}


PROGRAMS: dict[str, Any] = {"rms": by_rms, "layer norm": by_layer_norm, **LEFT}

OWN = dict.fromkeys(PROGRAMS, PARAMS)
"""Each program has parameters of its own: streams that begin with the same rows would be one."""


def every(p: Any, tokens: Any) -> Any:
    return {name: fun(p[name], tokens) for name, fun in PROGRAMS.items()}


def test_streams_are_rotated_and_the_numbers_stay() -> None:
    expected = jax.jit(every)(OWN, TOKENS)
    for passes in ("cleanup,rotate", "deploy,rotate"):
        model = lepton.compile(every, OWN, TOKENS, passes=passes, strict=True)
        assert model.report().passes.rules["rotated-stream"] == 2, passes
        found = model(TOKENS)
        for name in PROGRAMS:
            for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected[name]), strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4, err_msg=f"{passes}: {name}")
    reasons = str(lepton.optimize(every, "cleanup,rotate", params=0).explain(OWN, TOKENS))
    for reason in ("it is a result of the program", "tanh reads it", "its mean"):
        assert reason in reasons


def test_nothing_is_rotated_at_each_call() -> None:
    model = lepton.compile(by_rms, PARAMS, TOKENS, passes="cleanup,rotate", strict=True)
    plain = lepton.compile(by_rms, PARAMS, TOKENS, passes="cleanup")
    count = [str(each.jit.trace(each.params, TOKENS).jaxpr).count("dot_general") for each in (model, plain)]
    assert count[0] == count[1]
    moved = [a for name, a in model.params.items() if name.startswith("p/stack")]
    assert moved and all(not np.allclose(a, PARAMS["stack"]) for a in moved if a.shape == (3, WIDTH, WIDTH))


def test_an_outlier_costs_less_once_rotated() -> None:
    loud = {**PARAMS, "table": PARAMS["table"].at[:, 3].mul(40.0)}
    exact = jax.jit(by_rms)(loud, TOKENS)
    errors: list[float] = []
    for first in ("cleanup,", "cleanup,rotate,"):
        passes = f'{first}quantize{{only="p/up p/stack",activations=dynamic,activation_format=int4}}'
        model = lepton.compile(by_rms, loud, TOKENS, passes=passes, strict=True)
        errors.append(float(jnp.linalg.norm(model(TOKENS) - exact) / jnp.linalg.norm(exact)))
    assert errors[1] < 0.7 * errors[0]


def test_inputs_are_rotated_at_run_time_where_asked() -> None:
    passes = 'cleanup,rotate{stream=false,online="p/down"}'
    model = lepton.compile(by_rms, PARAMS, TOKENS, passes=passes, strict=True)
    assert model.report().passes.rules["rotated-input"] == 1
    expected = jax.jit(by_rms)(PARAMS, TOKENS)
    np.testing.assert_allclose(model(TOKENS), expected, rtol=2e-4, atol=2e-4)
    with pytest.raises(lepton.UsageError, match="rotates nothing"):
        lepton.compile(by_rms, PARAMS, TOKENS, passes='cleanup,rotate{online="p/out"}')
    with pytest.raises(lepton.UsageError, match="which arguments are parameters"):
        lepton.optimize(by_rms, "rotate")(PARAMS, TOKENS)


def test_where_no_hadamard_matrix_is_known_nothing_is_rotated() -> None:
    w = floats(7, 7)
    report = lepton.compile(
        lambda w, i: rms(w[i], 1.0) @ w, w, jnp.arange(3), passes="cleanup,rotate"
    ).report()
    assert "rotated-stream" not in report.passes.rules
