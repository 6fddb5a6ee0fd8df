"""Residual blocks and scanned layers that are left out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from lepton_jax.ir.cutting import inline_calls
from lepton_jax.ir.importer import trace
from lepton_jax.structured.blocks import residual_blocks
from tests import structured_models as models

FAST: Any = {"xla_backend_optimization_level": 0}


def names(fun: Any, params: Any, *args: Any) -> list[str]:
    paths = lepton.ir.paths.leaf_paths("p", params)
    graph = inline_calls(trace(fun, params, *args))
    return [block.name for block in residual_blocks(graph, dict(enumerate(paths)))]


def test_blocks_are_found() -> None:
    """Additions of x and what comes of x through weights of its own; parallel ones too, not gelu's cubes."""
    fun, params, sample = models.blocks()
    assert names(fun, params, *sample) == ["p/blocks/0", "p/blocks/1", "p/blocks/2"]

    def parallel(p: Any, x: Any) -> Any:
        y = models.layer_norm(p["norm"], x)
        x = x + jnp.tanh(y @ p["a"]) + jax.nn.gelu(y @ p["b"]) @ p["a"].T + p["bias"]
        return x + jnp.tanh(x) * p["bias"], x @ p["c"] + x @ p["d"]

    norm = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    weights = {name: models.weight(16, 16) for name in "abcd"}
    assert names(parallel, weights | {"norm": norm, "bias": jnp.ones(16)}, models.ROWS) == ["p/b"]
    resnet, params, sample = models.resnet()
    assert names(resnet, params, *sample) == ["p"]  # those with other shapes or a projection are none


def test_the_least_important_blocks_go() -> None:
    """The result is the model written without them; their parameters are empty and take no gradient."""
    fun, params, (x,) = models.blocks()
    one = lepton.structured_prune(fun, params, x, depth=1)
    assert [b["up"].shape for b in one.params["blocks"]] == [(8, 12), (0, 12), (8, 12)]
    assert [b.after for b in one.report.groups if b.kind == "blocks"] == [1, 0, 1]
    rest = params | {"blocks": [params["blocks"][0], params["blocks"][2]]}
    gradient = jax.eval_shape(jax.grad(lambda p: one.fun(p, x).sum()), one.params)
    found, expected = jax.jit(lambda p, rest: (one.fun(p, x[:1]), fun(rest, x[:1])), compiler_options=FAST)(
        one.params, rest
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert gradient["blocks"][1]["up"].shape == (0, 12)
    assert str(one.report).count("residual block, stays (importance") == 2
    by_change = lepton.structured_prune(fun, params, x, depth=0.4, depth_importance="change", ratio=0.5)
    assert [b["up"].shape for b in by_change.params["blocks"]] == [(4, 6), (0, 12), (4, 6)]
    twice = lepton.structured_prune(by_change.fun, by_change.params, x, ratio=0.5)
    assert twice.params["blocks"][0]["up"].shape == (2, 3) and twice.params["blocks"][1]["up"].shape == (
        0,
        12,
    )
    assert jax.eval_shape(twice.fun, twice.params, x).shape == (2, 5, 3)


def test_layers_go_by_the_loss() -> None:
    fun, params, (tokens,) = models.stacked()
    layers = params["layers"] | {"down": params["layers"]["down"].at[2].set(0.0)}

    model = params | {"layers": layers}
    wanted = jax.jit(fun, compiler_options=FAST)(model, tokens)

    def loss(p: Any, tokens: Any) -> Any:
        return jnp.sum((fun(p, tokens) - wanted) ** 2)

    small = lepton.structured_prune(
        fun, model, tokens, depth=1, depth_importance="loss", loss=loss, batches=[(tokens,)]
    )
    kept = small.kept["p/layers/up"][0]
    assert kept is not None and kept.tolist() == [0, 1, 3]
    found = jax.jit(small.fun, compiler_options=FAST)(small.params, tokens)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)


def test_shapes_alone_cannot_be_measured() -> None:
    fun, params, (x,) = models.blocks()
    with pytest.raises(lepton.UsageError, match="give arrays"):
        lepton.structured_prune(fun, params, jax.ShapeDtypeStruct(x.shape, x.dtype), depth=1)
    with pytest.raises(lepton.UsageError, match="the parameters are shapes: give arrays"):
        lepton.structured_prune(fun, jax.eval_shape(lambda: params), x, ratio=0.5)
