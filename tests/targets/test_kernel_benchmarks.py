"""The benchmarks for GPUs: they say so where there is none, and run through where there seems to be one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import kernels
from benchmarks.quantise_cases import gpu
from lepton_jax.targets.kernels import blocks as sizes
from lepton_jax.targets.kernels.blocks import Blocks
from lepton_jax.targets.kernels.weight_only import plain


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert gpu.measure(quick=True) == [] and kernels.main([]) == 0
    assert capsys.readouterr().out.count("there is no GPU") == 2


def test_the_fastest_blocks_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    case = kernels.Case(1, 4096, 4, 128)
    choices = list(kernels.candidates(case))
    assert all(b.splits <= 16 for b in choices) and len(set(choices)) == len(choices)

    def time(blocks: Blocks) -> float:
        if blocks.warps == 8:
            raise RuntimeError("too little shared memory")
        return abs(blocks.splits - 4) + blocks.stages / 10 + blocks.columns / 1e4

    found = kernels.best(choices, time)
    assert found is not None and found[0] == Blocks(64, 4, 4, 2) and found[1] == pytest.approx(0.2064)
    assert kernels.best([Blocks(64, 1, 8, 2)], time) is None
    assert "too little shared memory" in capsys.readouterr().err


def test_kernels_fill_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    def stand_in(x: Any, words: Any, scale: Any, layout: Any, dtype: Any, cut: Blocks) -> Any:
        assert cut.splits in (1, 2, 4)
        return plain(x, words, scale, layout, dtype)

    written: dict[str, Blocks] = {}
    few = [Blocks(64, 1, 4, 2), Blocks(64, 2, 4, 2)]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(kernels, "call_kernel", stand_in)
    monkeypatch.setattr(kernels, "CACHE", 2**10)
    monkeypatch.setattr(kernels, "FORMATS", ((4, 64), (8, 0)))
    monkeypatch.setattr(kernels, "candidates", lambda case: few)
    monkeypatch.setattr(kernels, "write_table", written.update)
    monkeypatch.setattr("benchmarks._common.SAMPLE", 0.001)
    file = tmp_path / "rows.json"
    assert kernels.main(["--rows", "2", "--width", "256", "--tune", "--json", str(file)]) == 0
    kind = jax.devices()[0].device_kind
    assert set(written) == {sizes.key_of(2, 256, 256, bits, group, kind) for bits, group in ((4, 64), (8, 0))}
    rows = json.loads(file.read_text())
    assert [row["weights"] for row in rows] == ["int4, groups of 64", "int8, per channel"]
    assert all(row["ratio"] > 0 for row in rows) and "int8, per channel" in capsys.readouterr().out


def test_products_run_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("benchmarks._common.SAMPLE", 0.001)
    every = {**gpu.FEW, **gpu.FOUR}
    names = "int8, weights alone", "fp8, static", "int8, dynamic", "int4 in groups of 64"
    monkeypatch.setattr(gpu, "QUICK", (gpu.Case(2, 256, 2, {name: every[name] for name in names}),))
    rows = gpu.measure(quick=True)
    assert [row["model"] for row in rows] == [*names]
    assert all(row["error"] < 0.25 and row["bytes"] < 0.6 for row in rows)
    assert jnp.isfinite(jnp.asarray([row["times as fast as bfloat16"] for row in rows])).all()
