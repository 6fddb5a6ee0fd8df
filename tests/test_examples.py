"""The examples run and do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from lepton_jax.parallel.local import run_processes

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str) -> dict[str, Any]:
    """The names that an example defines."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_train_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("train_step")["main"](steps=60) < 0.5
    assert "equations became" in capsys.readouterr().out


@pytest.mark.usefixtures("forget_passes")
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


def test_shard(capsys: pytest.CaptureFixture[str]) -> None:
    found = load("shard")["main"](steps=6)
    assert found["tensor parallel"][-1] < found["tensor parallel"][0] - 0.05
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_train_pod(tmp_path: Path) -> None:
    """Two processes train and write a checkpoint; one goes on from it on another mesh, as if nothing were."""
    common = ["--layers", "1", "--width", "16", "--length", "16", "--batch", "8"]
    kept = [*common, "--checkpoints", str(tmp_path), "--every", "1"]
    hosts = ["--hosts", "{coordinator}", "{processes}", "{process}", "--steps", "2", "--shard", "fsdp"]
    ended = run_processes(EXAMPLES / "train_pod.py", n=2, devices=2, timeout=150, args=[*kept, *hosts])
    assert [each.status for each in ended] == [0, 0], ended
    assert "all-gather" in ended[0].out and "all-gather" not in ended[1].out
    main = load("train_pod")["main"]
    whole = main([*common, "--steps", "3", "--mesh", "data=1,model=2", "--shard", "tp"])
    again = main([*kept, "--steps", "3", "--mesh", "data=4,model=2", "--shard", "auto"])
    assert len(whole) == 3 and len(again) == 1
    assert abs(again[0] - whole[2]) < 1e-4
