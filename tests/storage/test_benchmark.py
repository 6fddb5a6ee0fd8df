"""The benchmark of files runs, and its figures are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import storage


def test_quick_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every codec on every array; ours comes within two percent of the entropy on these short arrays."""
    monkeypatch.delenv("LEPTON_DATA", raising=False)
    assert storage.main(["--quick", "--all", "--json", str(tmp_path / "x.json")]) == 0
    rows = json.loads((tmp_path / "x.json").read_text())
    ours = {row["array"]: row for row in rows if row["codec"] == "lepton"}
    assert len(ours) == 6 and all(row["times smaller"] > 0.98 * row["entropy"] for row in ours.values())
    assert ours["bfloat16"]["times smaller"] > 1.48
    out = capsys.readouterr().out
    assert "set LEPTON_DATA" in out and out.count("| lepton |") == 6
