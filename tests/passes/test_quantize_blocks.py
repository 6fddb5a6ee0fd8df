"""Weights in codes that are decoded a block of channels at a time: the same numbers as decoded whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from lepton_jax.passes.quantize._quantize import blocks
from tests.passes._lowering import floats

PARAMS = {
    "plain": floats(72, 100),
    "left": floats(90, 72),
    "heads": floats(6, 40, 72),
    "several": floats(8, 9, 50),
    "low": floats(72, 64, dtype=jnp.bfloat16),
    "batch": floats(2, 72, 64),
}


def program(params: Any, x: Any) -> dict[str, Any]:
    return {
        "plain": x @ params["plain"],
        "left": params["left"] @ jnp.swapaxes(x, 1, 2),
        "heads": jnp.einsum("btd,hkd->bthk", x, params["heads"]),
        "several": jnp.einsum("btij,ijn->btn", x.reshape(*x.shape[:2], 8, 9), params["several"]),
        "low": x.astype(jnp.bfloat16) @ params["low"],
        "batch": jnp.einsum("btd,bdn->btn", x, params["batch"]),
    }


FORMATS = {
    "int4": "weights=int4,group=32",
    "nf4": 'weights=nf4,per=tensor,only="params/heads"',
    "int3": 'weights=int3,symmetric=false,only="params/several"',
}


def test_blocks_decode_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = floats(2, 3, 72)

    def compiled() -> dict[str, Any]:
        passes = {name: f"cleanup,quantize{{{options}}}" for name, options in FORMATS.items()}
        return {name: lepton.compile(program, PARAMS, x, passes=each) for name, each in passes.items()}

    def run(models: dict[str, Any]) -> Any:
        return jax.jit(lambda x: {name: model(x) for name, model in models.items()})(x)

    whole = compiled()
    expected = run(whole)
    monkeypatch.setattr(blocks, "BLOCK", 2**11)
    models = compiled()
    found = run(models)
    for name, model in models.items():
        text = str(model.jit.trace(model.params, x).jaxpr)
        assert text.count("scan[") == (5 if name == "int4" else 1), name
        assert model.nbytes <= whole[name].nbytes * 1.05
        for key in PARAMS:
            assert found[name][key].dtype == expected[name][key].dtype
            tolerance = 0.02 if key == "low" else 1e-5
            a, b = (np.asarray(each[name][key], np.float32) for each in (found, expected))
            np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=f"{name}, {key}")


def odd(params: Any, x: Any) -> Any:
    return jnp.sin(x @ params["plain"])


def test_blocks_under_transformations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 2**11)
    x, params = floats(3, 72), {"plain": PARAMS["plain"]}
    model = lepton.compile(odd, params, x, passes="cleanup,quantize")
    [codes, scale] = (each.astype(jnp.float32) for each in jax.tree.leaves(model.params))
    decoded = {"plain": (codes * scale).T}

    def all_of_it(x: Any) -> Any:
        pair = [jax.grad(lambda x, run=run: run(x).sum())(x) for run in (model, lambda x: odd(decoded, x))]
        return pair, jax.vmap(model)(jnp.stack([x, -x])), odd(decoded, x)

    jitted = jax.jit(all_of_it)
    (slope, expected), mapped, y = jitted(x)
    np.testing.assert_allclose(slope, expected, 1e-4, 1e-5)
    for found in (mapped[0], -mapped[1]):
        np.testing.assert_allclose(found, y, 1e-4, 1e-5)
    assert jax.export.export(jitted)(x).mlir_module_serialized


def test_sizes_of_blocks() -> None:
    million = blocks.BLOCK
    assert blocks.channels_of_block((4096, 4096), (0,), ()) * 4096 == million
    assert blocks.channels_of_block((50257, 768), (1,), ()) * 768 <= million * 1.02
    assert blocks.channels_of_block((16, 4096, 4096), (1,), (0,)) == 0
    assert blocks.channels_of_block((1024, 1024), (0,), ()) == 0
    assert blocks.channels_of_block((4, million), (1,), ()) == 1
