"""Quantised models compiled ahead of time for a TPU, where its compiler is installed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lepton_jax as lepton
from benchmarks import tpu, tpu_types
from benchmarks.tpu_types import product_types


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
    assert product_types(model.jit.lower(*there).compile().as_text()) == {"s8·s8→s32": 1}


def test_single_products_keep_their_types(chip: NamedSharding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu_types, "SIZES", ((16, 256),))
    rows = {row["name"].split()[1].strip(","): row for row in tpu_types.product_rows(chip, tpu.cycles)}
    assert rows.keys() == tpu_types.TYPES.keys() and all(row["kept"] for row in rows.values())
    assert (
        rows["int4"]["types"] == "1 × s4·s4→s32"
        and rows["float8_e4m3fn"]["types"] == "1 × f8e4m3fn·f8e4m3fn→f32"
    )


def test_types_are_those_of_the_same_computation() -> None:
    """Operands have the same names in several computations, and other types there."""
    line = "  %c = s32[8,8]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_io->bf"
    wide = "%f {\n  %a = bf16[8,8] parameter(0)\n  %b = s8[8,8] parameter(1)\n" + line + "\n}\n"
    low = wide.replace("bf16", "s8") + "%g {\n  %d = f32[8] dot(%x, %y)\n}\n".replace("%x, %y", "%d, %d")
    assert tpu_types.product_types(wide + low) == {"bf16·s8→s32": 1, "s8·s8→s32": 1, "f32·f32→f32": 1}
    assert tpu_types.shown(tpu_types.product_types("")) == "none"


def test_the_benchmark_compiles_models(chip: NamedSharding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu, "QUANTISED", {"int8, dynamic": "quantize{activations=dynamic}"})
    plain, ours = tpu.quantised(chip, 16, width=256, layers=2)
    assert plain["cycles"] > 0 and ours["cycles"] > 0
    assert ours["products"] == "2 × s8·s8→s32" and "bf16" in plain["products"]
    assert ours["parameters"] < 0.6 * plain["parameters"]
