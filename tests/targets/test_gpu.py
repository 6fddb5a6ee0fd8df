"""Quantised models compiled ahead of time for a GPU, and what is read from their texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lepton_jax as lepton
from benchmarks import gpu
from benchmarks.gpu import Case, forms, kernels
from lepton_jax.parallel.aot.topologies import get_topology, why_not

needs_plugin = pytest.mark.skipif(bool(why_not("h100:1x1")), reason=why_not("h100:1x1"))

TEXT = """HloModule jit_run

%gemm (p: s8[16,64], q: s8[32,64]) -> s32[16,32] {
  %p = s8[16,64]{1,0} parameter(0)
  %q = s8[32,64]{1,0} parameter(1)
  ROOT %dot.2 = s32[16,32]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%body (b: (s32[], s8[16,64])) -> (s32[], s8[16,64]) {
  %b = (s32[], s8[16,64]{1,0}) parameter(0)
  %x = s8[16,64]{1,0} get-tuple-element(%b), index=1
  %w = s8[32,64]{1,0} broadcast(%x), dimensions={}
  %i = s32[] get-tuple-element(%b), index=0
  %fusion.1 = s32[16,32]{1,0} fusion(%x, %w), kind=kCustom, calls=%gemm
  ROOT %t = (s32[], s8[16,64]{1,0}) tuple(%i, %x)
}

%condition (c: (s32[], s8[16,64])) -> pred[] {
  %c = (s32[], s8[16,64]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (x: bf16[16,64], w: s16[32,16], s: f32[1,32], z: (s32[], s8[16,64])) -> f32[16,32] {
  %x = bf16[16,64]{1,0} parameter(0)
  %w = s16[32,16]{1,0} parameter(1)
  %s = f32[1,32]{1,0} parameter(2)
  %z = (s32[], s8[16,64]{1,0}) parameter(3)
  %loop = (s32[], s8[16,64]{1,0}) while(%z), condition=%condition, body=%body, known_trip_count={n=3}
  ROOT %call = f32[1,16,32]{2,1,0} custom-call(%x, %w, %s), custom_call_target="__gpu$xla.gpu.triton"
}
""".replace("known_trip_count={n=3}", 'backend_config={"known_trip_count":{"n":"3"}}')


def test_products_are_read_with_their_types() -> None:
    assert forms(TEXT) == {"s8·s8→s32": 3, "Pallas bf16·s16·f32→f32": 1}
    assert kernels(TEXT) == 3 + 1


def test_without_the_plug_in_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "why_not", lambda _: "no plug-in")
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "nothing is compiled: no plug-in\n"


@needs_plugin
def test_models_keep_their_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product = Case("product", gpu.perceptron, ((256, 512),), (16, 256), gpu.ALL)
    convolution = Case("image", gpu.convolutions, ((3, 3, 32, 32),), (2, 8, 8, 32), gpu.EIGHT)
    monkeypatch.setattr(gpu, "CASES", (product, convolution))
    assert gpu.main(["--json", str(tmp_path / "found.json"), "--markdown", str(tmp_path / "found.md")]) == 0
    assert "| product | int8, dynamic | 1 × s8·s8→s32 |" in (tmp_path / "found.md").read_text()
    rows = {(row["program"], row["model"]): row for row in json.loads((tmp_path / "found.json").read_text())}
    products = {model: row["products"] for (program, model), row in rows.items() if program == "product"}
    kinds = {"int8": "s8·s8→s32", "fp8": "f8e4m3fn·f8e4m3fn→f32"}
    for model in ("int8, static", "int8, dynamic", "fp8, static", "fp8, dynamic"):
        assert products[model] == f"1 × {kinds[model.partition(',')[0]]}"
    for model in ("int8, weights alone", "int4, groups of 32", "int4, groups of 128"):
        assert products[model] == "1 × Pallas bf16·s16·f32→f32"
        assert rows["product", model]["kernels"] <= rows["product", "bfloat16"]["kernels"]
    for model in ("int8, static", "int8, dynamic"):
        assert rows["image", model]["products"] == "1 × cuDNN s8·s8→f32"
    assert "bf16·bf16" in rows["image", "fp8, static"]["products"]  # not float32


@needs_plugin
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("rows", [1, 64])
def test_the_kernel_compiles_for_arguments_that_lie_on_a_gpu(rows: int, dtype: Any) -> None:
    """No mesh is set: the kernel is told the device that its arguments name."""
    mesh = Mesh(np.array(get_topology("h100:1x1").devices), ("all",))
    w, x = jnp.ones((256, 128), dtype), jnp.ones((rows, 256), dtype)
    for options in ("", "{weights=int4,group=64}"):
        model = lepton.compile(lambda w, x: x @ w, w, x, passes=f"default,quantize{options}", target="gpu")
        there = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, PartitionSpec())),
            (model.params, x),
        )
        text = model.jit.lower(*there).compile().as_text()
        (found,) = forms(text)
        assert found.startswith("Pallas ")
