"""Small runs of `benchmarks/shard.py`."""

from __future__ import annotations

import pytest

from benchmarks import shard


def test_cases_are_found_in_order() -> None:
    assert tuple(shard.SUITE.cases()) == shard.SUITE.order


@pytest.mark.parametrize("case", ["training", "compressed"])
def test_missing_data_is_said(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEPTON_DATA", "/nowhere")
    assert shard.SUITE.measure(True, case) == []
    assert "not measured: there is no /nowhere/tinyshakespeare.txt" in capsys.readouterr().out


def test_wire_and_solve() -> None:
    for case in ("wire", "solve"):
        rows = shard.SUITE.measure(True, case)
        assert rows and all(row for row in rows)
