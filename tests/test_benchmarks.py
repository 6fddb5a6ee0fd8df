"""The benchmarks run, and say what they promise; how fast they are is not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def test_overhead(tmp_path: Path) -> None:
    file = tmp_path / "overhead.json"
    command = [sys.executable, str(ROOT / "benchmarks/overhead.py"), "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    for aim in ("≤ 15 %", "≤ 150 µs", "≤ 1.5", "≤ 5 µs"):
        assert aim in done.stdout
    figures: dict[str, Any] = json.loads(file.read_text())
    check_models(figures["models"])
    check_lines(figures["lines"])
    call = figures["call"]
    assert call["jit"] > 0
    assert call["difference"] == call["lepton"] - call["jit"]


def check_models(rows: list[dict[str, Any]]) -> None:
    assert [row["name"] for row in rows] == ["decoder, 2 layers", "ResNet train step"]
    for row in rows:
        before, after = row["equations"]
        assert after < before
        assert 0 < row["share"] < row["ratio"]
        assert all(seconds > 0 for seconds in row["jit_seconds"].values())


def check_lines(rows: list[dict[str, Any]]) -> None:
    assert [row["equations"] for row in rows] == [200, 1000]
    for row in rows:
        each = row["microseconds"]
        parts = each["import"] + each["passes"] + each["evaluate"]
        assert parts == pytest.approx(each["added"], rel=0.05)
        assert {"pass inline", "pass algebra", "pass movement", "pass cse"} <= each.keys()
