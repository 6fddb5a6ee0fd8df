"""Weights that a loop over time reads at each step: they are kept once, whatever is made of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from tests.passes._quantize import floats

LAYERS, STEPS, WIDTH = 2, 5, 16
PARAMS = {
    "inputs": floats(LAYERS, WIDTH, WIDTH, scale=0.2),
    "states": floats(LAYERS, WIDTH, WIDTH, scale=0.2),
}
X = floats(STEPS, 3, WIDTH)
BATCHES = [floats(STEPS, 3, WIDTH), floats(2 * STEPS, 3, WIDTH)]


def recurrent(params: Any, x: Any) -> Any:
    """A stack of recurrent layers: a loop over time in a loop over layers."""

    def layer(x: Any, own: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = jnp.tanh(x @ own["inputs"] + h @ own["states"].T)
            return h, h

        return lax.scan(step, jnp.zeros(x.shape[1:]), x)[1], None

    return lax.scan(layer, x, params)[0]


@pytest.mark.parametrize(
    ("passes", "most", "off"),
    [
        ("palettize{bits=4}", 0.19, 0.25),
        ("palettize{bits=4,weigh=hessian,lookup=load}", 1.0, 0.25),
        ("palettize{bits=4,per=channel,group=8}", 0.26, 0.25),
        ("low-rank{energy=0.95,goal=smaller}", 1.0, 0.4),
        ("low-rank{rank=6,weigh=hessian,goal=smaller}", 0.8, 0.7),
        ("quantize{weights=int4,method=gptq}", 0.19, 0.25),
        ("quantize{activations=static}", 0.32, 0.05),
        ("prune{importance=wanda,sparsity=0.25}", 1.0, 0.4),
    ],
)
def test_kept_once(passes: str, most: float, off: float) -> None:
    """Sequences of other lengths serve calibration, and the model."""
    by_data = any(word in passes for word in ("hessian", "gptq", "static", "wanda"))
    given = BATCHES if by_data else None
    model = lepton.compile(recurrent, PARAMS, X, passes=f"default,{passes}", calibration=given)
    exact = jax.jit(recurrent)(PARAMS, X)
    assert jnp.linalg.norm(model(X) - exact) < off * jnp.linalg.norm(exact)
    assert model.nbytes <= most * sum(weight.nbytes for weight in PARAMS.values())
    if "palettize" in passes:
        assert all("2,048 → " in site.done for site in model.report().passes.sites)


@pytest.mark.parametrize(
    "passes", ["palettize{bits=3,train=centroids}", "low-rank{rank=4,train=factors,goal=smaller}"]
)
def test_trained_once(passes: str) -> None:
    """What is learned of a weight is learned by all steps together; another length takes it as it is."""
    f = lepton.trainable(recurrent, PARAMS, X, passes=f"default,{passes}")
    learned = f.params["learned"]["params/inputs"]
    assert all(array.shape[0] == LAYERS and array.ndim < 5 for array in jax.tree.leaves(learned))
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(f(p, X) ** 2)))(f.params)["learned"]
    assert all(float(jnp.abs(slope).max()) > 0 for slope in jax.tree.leaves(slopes))
    longer = floats(2 * STEPS, 3, WIDTH)
    assert f(f.params, longer).shape == longer.shape
    np.testing.assert_allclose(f.compile(f.params)(X), f(f.params, X), rtol=1e-4, atol=1e-5)


def test_one_adapter_for_all_steps() -> None:
    tuned = lepton.lora(recurrent, PARAMS, X, rank=2)
    expected = {"down": (LAYERS, WIDTH, 2), "up": (LAYERS, 2, WIDTH)}
    assert jax.tree.map(jnp.shape, tuned.adapters) == {f"params/{name}": expected for name in PARAMS}
    adapters = jax.tree.map(lambda a: a + 0.1, tuned.adapters)
    merged = tuned.merged(adapters)
    np.testing.assert_allclose(
        tuned(adapters, PARAMS, X), jax.jit(recurrent)(merged, X), rtol=1e-4, atol=1e-5
    )
