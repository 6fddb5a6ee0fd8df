"""The benchmark of quantisation, at small sizes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quantise
from benchmarks._common import table
from benchmarks.quantise_cases import layers
from benchmarks.quantise_cases.peers import compare, onnxruntime, worker
from benchmarks.quantise_cases.peers._problem import Problem, Variant, read


def test_layers_are_smaller_and_nearly_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "found.json", tmp_path / "page.md"
    arguments = ["--quick", "--only", "layers", "--json", str(file), "--markdown", str(page)]
    assert quantise.main(arguments) == 0
    rows = json.loads(file.read_text("utf-8"))["layers"]
    assert {row["model"] for row in rows} == set(layers.KINDS)
    for row in rows:
        is_int4 = row["model"].startswith("int4")
        assert row["bytes"] < (0.15 if is_int4 else 0.27)
        assert row["error"] < (0.3 if is_int4 else 0.05)
        assert row["milliseconds"] > 0
    assert table(rows) in page.read_text("utf-8")
    assert table(rows) in capsys.readouterr().out


def test_missing_data_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LEPTON_DATA", "/nowhere")
    assert quantise.main(["--quick", "--only", "accuracy"]) == 0
    assert "there is no /nowhere/resnet20_cifar10.npz" in capsys.readouterr().out


def test_columns_that_change_begin_a_table() -> None:
    rows = [{"rows": 1, "model": "a|b"}, {"model": "c", "error": 0.123456}]
    assert (
        table(rows)
        == "| rows | model |\n|---|---|\n| 1 | a\\|b |\n\n| model | error |\n|---|---|\n| c | 0.1235 |"
    )


def test_cases_are_found_in_order() -> None:
    there = quantise.SUITE.cases()
    assert there[0] == "layers" and "accuracy" in there
    assert [name for name in quantise.SUITE.order if name in there] == there


def test_peers_run_in_turn_and_missing_ones_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "PEERS", ("onnxruntime",))
    file = tmp_path / "found.json"
    assert quantise.main(["--peers", "--quick", "--only", "layers", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    missing = [name for name in onnxruntime.REQUIRES if importlib.util.find_spec(name) is None]
    assert (f"{', '.join(missing)} not installed" in printed) == bool(missing)
    assert not missing or "pip install 'lepton-jax[peers]'" in printed
    rows = {row["as"]: row for row in json.loads(file.read_text("utf-8"))["layers"]}
    assert list(rows)[:3] == ["jax.jit, float32", "Lepton int8, dynamic", "Lepton int8, static"]
    assert rows["jax.jit, float32"]["error"] < 1e-6
    for kind in ("dynamic", "static"):
        row = rows[f"Lepton int8, {kind}"]
        assert row[f"time of Lepton's {kind}"] == 1 and row["ms"] > 0 and row["error"] < 0.05


def problem() -> Problem:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    return Problem("square", "perceptron", {"a/b": x.T}, [x], [x @ x.T], {"quick": True})


def test_problems_are_handed_over_as_they_are(tmp_path: Path) -> None:
    problem().save(tmp_path)
    found = read(tmp_path)
    assert (found.name, found.model, found.config) == ("square", "perceptron", {"quick": True})
    np.testing.assert_array_equal(found.params["a/b"], problem().params["a/b"])
    np.testing.assert_array_equal(found.expected[0], problem().expected[0])


def test_a_model_that_is_another_one_is_not_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = problem().expected[0]
    variants = {
        "exact": Variant("exact", lambda: lambda: right, lambda found: [found], is_float=True),
        "off": Variant("off", lambda: lambda: 1.1 * right, lambda found: [found]),
        "wrong": Variant("wrong", lambda: lambda: 1.1 * right, lambda found: [found], is_float=True),
        "shape": Variant("shape", lambda: lambda: right[0], lambda found: [found]),
    }
    problem().save(tmp_path)
    there = worker.Worker("lepton")
    there.module = type("Tool", (), {"variants": staticmethod(lambda problem: variants.values())})
    rows = {row["variant"]: row for row in there.load(str(tmp_path))}
    assert rows["exact"]["error"] == 0 and rows["off"]["error"] == pytest.approx(0.1)
    assert rows["wrong"]["failed"].startswith("ValueError: the model in floats is not the same")
    assert rows["shape"]["failed"] == "ValueError: a result of (2,) where (2, 2) is expected"
    assert set(there.runs) == {"exact", "off"} and there.time("exact") > 0
    assert "not the same" in capsys.readouterr().err


def test_ratios_are_of_the_same_round() -> None:
    times = {"Lepton int8, dynamic": [1.0, 2.0, 4.0], "other": [2.0, 6.0, 8.0]}
    row = compare.row_of("model", {"variant": "other", "error": 0.5}, times)
    assert row["ms"] == 6000 and row["time of Lepton's dynamic"] == 2 and row["error"] == 0.5
    failed = compare.row_of("model", {"variant": "broken", "failed": "no compiler"}, times)
    assert list(failed.values()) == ["model", "broken", "–", "–", "–", "no compiler"]
