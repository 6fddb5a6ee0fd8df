"""Quantised models compiled ahead of time for a TPU, where its compiler is installed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lepton_jax as lepton
from benchmarks import tpu


@pytest.fixture(scope="module")
def chip() -> NamedSharding:
    """A chip that multiplies int8."""
    pytest.importorskip("libtpu", reason="the TPU compiler is missing: pip install 'lepton-jax[tpu]'")
    from jax.experimental import topologies

    device: Any = topologies.get_topology_desc("v5e:2x2", "tpu").devices[0]
    return NamedSharding(Mesh(np.array([device]), ("all",)), PartitionSpec())


def test_int8_products_stay_int8(chip: NamedSharding) -> None:
    w, x = jnp.ones((256, 256), jnp.bfloat16), jnp.ones((16, 256), jnp.bfloat16)
    model = lepton.compile(
        lambda w, x: x @ w, w, x, passes="default,quantize{activations=dynamic}", target="tpu"
    )
    there = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=chip), (model.params, x))
    text = model.jit.lower(*there).compile().as_text()
    assert "s32[16,256]" in text and "s8[16,256]" in text and "s8[256,256]" in text


def test_the_benchmark_compiles_models(chip: NamedSharding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu, "QUANTISED", {"int8, dynamic": "quantize{activations=dynamic}"})
    plain, ours = tpu.quantised(chip, 16, width=256, layers=2)
    assert plain["cycles"] > 0 and ours["cycles"] > 0
    assert ours["parameters"] < 0.6 * plain["parameters"]
