"""Adapters beside weights: nothing at first, the same merged and not, in loops, beside codes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import lepton_jax as lepton

RNG = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[-2]), jnp.float32)


PARAMS = {
    "layers": floats(2, 24, 24),
    "kernel": floats(3, 3, 2, 4),
    "turned": floats(5, 16),
    "half": floats(24, 24).astype(jnp.bfloat16),
    "table": floats(9, 24),
    "gain": jnp.ones(24),
}
TOKENS = jnp.array([[1, 2], [3, 8]])


def network(params: Any, tokens: Any) -> Any:
    """A table, layers in a loop, a kernel, a weight that is read turned, one in bfloat16."""
    h = params["table"][tokens] * params["gain"]
    h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["layers"])
    h = (h.astype(jnp.bfloat16) @ params["half"]).astype(jnp.float32)
    image = h.reshape(2, 4, 6, 2)
    numbers = ("NHWC", "HWIO", "NHWC")
    image = lax.conv_general_dilated(image, params["kernel"], (2, 3), "SAME", dimension_numbers=numbers)
    return image.reshape(2, 16) @ params["turned"].T


def moved(adapters: Any) -> Any:
    """Adapters that add something."""
    return jax.tree.map(lambda a: a + jnp.asarray(RNG.normal(size=a.shape) / 8, a.dtype), adapters)


def close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_merged_gives_what_adapters_beside_give() -> None:
    """As parameters, in a prepared model; beside codes; gradients reach adapters, and all of them."""
    f = lepton.lora(network, PARAMS, TOKENS, rank=3, alpha=6.0)
    names = {f"params/{name}" for name in ("layers", "kernel", "turned", "half")}
    assert set(f.adapters) == names
    assert f.adapters["params/layers"]["down"].shape == (2, 24, 3)
    assert {site.name: site.reason for site in f.report.sites}["params/table"] == "gather is not selected"
    adapters = moved(f.adapters)
    merged = f.merged(adapters)
    plain, start, beside, slopes, inside = jax.jit(
        lambda a, merged: (
            network(PARAMS, TOKENS),
            f(f.adapters, PARAMS, TOKENS),
            f(a, PARAMS, TOKENS),
            jax.grad(lambda a: jnp.sum(f(a, PARAMS, TOKENS) ** 2))(a),
            network(merged, TOKENS),
        )
    )(adapters, merged)
    np.testing.assert_array_equal(start, plain)
    assert float(jnp.abs(beside - plain).max()) > 0.1
    assert all(float(jnp.abs(slope).max()) > 0 for slope in jax.tree.leaves(slopes))
    assert set(merged) == set(PARAMS) and merged["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged["table"], PARAMS["table"])
    close(inside, beside, 0.03)
    model = f.compile(adapters=adapters, strict=True)
    close(model(TOKENS), beside, 0.03)
    assert model.nbytes == sum(array.nbytes for array in PARAMS.values())
    coded = f.compile(passes="default,quantize{ops=dot_general,weights=int8}", strict=True)
    kept = [array.dtype for array in coded.params.arrays]
    assert kept.count(jnp.int8) == 3
    close(coded(adapters, TOKENS), beside, 0.1)


class Block(nnx.Module):
    """Two layers, one weight of which is also a table."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.table = nnx.Embed(12, 8, rngs=rngs)
        self.dense = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        return self.table.attend(jax.nn.relu(self.dense(self.table(tokens))))


def test_modules_and_training() -> None:
    f = lepton.lora(Block(nnx.Rngs(0)), TOKENS, rank=2, only=".../dense")
    target = jax.nn.one_hot(TOKENS, 12)
    tx = optax.adam(1e-2)

    @jax.jit
    def trained(adapters: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            adapters, state = carry
            value, slopes = jax.value_and_grad(
                lambda a: optax.softmax_cross_entropy(f(a, f.params, TOKENS), target).mean()
            )(adapters)
            updates, state = tx.update(slopes, state, adapters)
            return (optax.apply_updates(adapters, updates), state), value

        return lax.scan(step, (adapters, tx.init(adapters)), None, length=80)

    (after, _), losses = trained(f.adapters)
    assert losses[-1] < 0.9 * losses[0]
    close(f.compile(adapters=after)(TOKENS), f(after, f.params, TOKENS))


def test_what_cannot_be_done() -> None:
    x = floats(3, 8)

    def normed(params: Any, x: Any) -> Any:
        return x @ (params["v"] / jnp.linalg.norm(params["v"], axis=0)) @ params["w"].T @ params["w"]

    params = {"v": floats(8, 8), "w": floats(6, 8)}
    f = lepton.lora(normed, params, x, rank=2)
    adapters = moved(f.adapters)
    with pytest.raises(lepton.UsageError, match=r"compile\(adapters="):
        f.merged(adapters)
    close(f.compile(adapters=adapters)(x), f(adapters, params, x), 1e-3)
    with pytest.raises(lepton.UsageError, match="are wanted"):
        f({}, params, x)
    (name, pair), *rest = adapters.items()
    for wrong, words in (({"down": pair["down"]}, "dictionary of"), (pair | {"up": pair["down"]}, "shapes")):
        for call in (f.merged, lambda each: f(each, params, x)):
            with pytest.raises(lepton.UsageError, match=words):
                call({**dict(rest), name: wrong})
    with pytest.raises(lepton.UsageError, match="matches none"):
        lepton.lora(normed, params, x, only="params/nothing")
    with pytest.raises(ValueError, match="rank=0"):
        lepton.lora(normed, params, x, rank=0)
