"""The examples run and do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str) -> dict[str, Any]:
    """The names that an example defines."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_train_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("train_step")["main"](steps=60) < 0.5
    assert "equations became" in capsys.readouterr().out


def test_own_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("own_pass")["main"]().ok
    out = capsys.readouterr().out
    assert "tanh-from-exponentials" in out
    assert "= tanh" in out


def test_quantise(capsys: pytest.CaptureFixture[str]) -> None:
    found = load("quantise")["main"](steps=100)
    assert min(found["int8 weights"], found["int8 weights and activations"]) > found["float32"] - 0.01
    assert min(found.values()) > found["float32"] - 0.03
    out = capsys.readouterr().out
    assert "params/out/kernel (dot_general): int8, per channel" in out


def test_train_quantised(capsys: pytest.CaptureFixture[str]) -> None:
    found = load("train_quantised")["main"](steps=60)
    assert found["int2, trained"] > found["float32"] - 0.05
    assert found["int2, trained"] > found["int2, rounded"]
    out = capsys.readouterr().out
    assert "params/out/kernel (dot_general): int2, per channel, lsq; activations int8, static" in out


def test_prune_structure(capsys: pytest.CaptureFixture[str]) -> None:
    found = load("prune_structure")["main"](steps=50)
    assert found["trained again"] > max(found["cut"], found["whole"] - 0.1)
    out = capsys.readouterr().out
    assert "units → " in out and "it is dimension 1 of output 0" in out


def test_distill() -> None:
    found = load("distill")["main"]()
    assert found["student, taught"] > found["student, alone"]
    assert found["teacher"] > found["student, alone"]
