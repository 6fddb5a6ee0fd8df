"""The benchmark of quantisation, at small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import quantise


def test_layers_are_smaller_and_nearly_right(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert quantise.main(["--quick", "--only", "layers", "--json", str(file)]) == 0
    rows = json.loads(file.read_text("utf-8"))["layers"]
    assert {row["model"] for row in rows} == set(quantise.LAYERS)
    for row in rows:
        is_int4 = row["model"].startswith("int4")
        assert row["bytes"] < (0.15 if is_int4 else 0.27)
        assert row["error"] < (0.3 if is_int4 else 0.05)
        assert row["milliseconds"] > 0


def test_missing_data_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LEPTON_DATA", "/nowhere")
    assert quantise.main(["--quick", "--only", "accuracy"]) == 0
    assert "there is no /nowhere/resnet20_cifar10.npz" in capsys.readouterr().out
