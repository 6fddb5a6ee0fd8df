"""The benchmark of mixed precision runs and tells what was converted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import precision


def test_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "precision.json"
    assert precision.main(["--quick", "--json", str(file)]) == 0
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in rows)
    assert [row["converted"][1] for row in rows.values()] == [5, 8]
    for row in rows.values():
        assert list(row["seconds"]) == ["jit", "default", "precision", "forced"]
        assert min(row["seconds"].values()) > 0 and 0 < row["error"] < 0.05
