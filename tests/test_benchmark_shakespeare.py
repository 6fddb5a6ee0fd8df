"""The benchmark of a character transformer, at small sizes and on a text made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quantise_cases import shakespeare


def test_rows_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcdefgh \n"), 4000)
    (tmp_path / "tinyshakespeare.txt").write_text("".join(letters), encoding="utf-8", newline="\n")
    monkeypatch.setenv("LEPTON_DATA", str(tmp_path))
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    rows = shakespeare.measure(quick=True)
    assert [row["model"] for row in rows] == ["float32", "W8A8, dynamic", "W3, bias correction"]
    exact = rows[0]["perplexity"]
    assert 5 < exact < 15  # letters drawn at random: there are ten
    assert abs(rows[1]["perplexity"] / exact - 1) < 0.01
    assert all(row["bytes"] < 0.6 for row in rows[1:])
    assert len(list((tmp_path / "cache").rglob("shakespeare-*.npz"))) == 1
    monkeypatch.setenv("LEPTON_DATA", str(tmp_path / "nowhere"))
    assert shakespeare.measure(quick=True) == []
