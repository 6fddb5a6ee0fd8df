"""The benchmark of compression: its cases are found, and say what is missing."""

from __future__ import annotations

import pytest

from benchmarks import compress


def test_cases_are_found_in_order() -> None:
    there = compress.SUITE.cases()
    assert there == list(compress.SUITE.order)
    assert all(f"- {name}:" in (compress.__doc__ or "") for name in there)


@pytest.mark.parametrize("name", ["deep_compression", "resnet20", "low_rank", "distillation"])
def test_missing_data_is_said(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEPTON_DATA", "/nowhere")
    assert compress.main(["--quick", "--only", name]) == 0
    assert "there is no /nowhere/" in capsys.readouterr().out


def test_smaller_products_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert compress.main(["--quick", "--only", "zeros"]) == 0
    assert capsys.readouterr().out.count("\n| ") > 2
