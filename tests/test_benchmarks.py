"""The benchmarks run, and say what they promise; how fast they are is not for tests."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import overhead, rewrites, tpu

ROOT = Path(__file__).parent.parent


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark does not empty the caches of JAX, which the other tests of this process fill."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


def test_overhead(tmp_path: Path, capsys: pytest.CaptureFixture[str], warm: None) -> None:
    file = tmp_path / "overhead.json"
    overhead.main(["--quick", "--json", str(file)])
    printed = capsys.readouterr().out
    for aim in ("≤ 15 %", "≤ 150 µs", "≤ 1.5", "≤ 5 µs"):
        assert aim in printed
    figures: dict[str, Any] = json.loads(file.read_text())
    check_models(figures["models"])
    check_lines(figures["lines"])
    call = figures["call"]
    assert call["jit"] > 0
    assert call["difference"] == call["lepton"] - call["jit"]


def check_models(rows: list[dict[str, Any]]) -> None:
    assert [row["name"] for row in rows] == ["decoder, 1 layers", "ResNet train step"]
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


def test_rewrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], warm: None
) -> None:
    file = tmp_path / "rewrites.json"
    command = ["rewrites.py", "--rounds", "2", "--only"]
    monkeypatch.setattr("sys.argv", [*command, "8 products of", "--json", str(file)])
    rewrites.main()
    printed = capsys.readouterr().out
    for aim in ("aim: 90 %", "aim: 0", "geometric mean"):
        assert aim in printed
    figures: dict[str, Any] = json.loads(file.read_text())
    assert len(figures["cases"]) == figures["summary"]["cases"] == 2
    for row in figures["cases"]:
        assert row["difference"] <= row["tolerance"]
        assert row["lepton"][1] <= row["lepton"][0] <= row["lepton"][2]
    monkeypatch.setattr("sys.argv", [*command, "nothing like it"])
    with pytest.raises(SystemExit, match="2"):
        rewrites.main()
    assert "no case has 'nothing like it'" in capsys.readouterr().err


def test_there_are_cases_of_every_family() -> None:
    found = [(family, case) for family, case in rewrites.cases() if family != "corpus"]
    assert len(found) >= 60
    assert len({case.name for _, case in found}) == len(found)
    families = {page.stem for page in (ROOT / "docs" / "rewrites").glob("*.md")} - {"cleanup"}
    assert families == {family for family, _ in found}


def test_a_difference_is_told_in_terms_of_the_largest_number() -> None:
    expected = jnp.array([1.0, -4.0, jnp.nan, jnp.inf])
    assert rewrites.difference(expected, expected) == 0
    assert rewrites.difference(expected, expected.at[0].set(2.0)) == 0.25
    assert not rewrites.difference(expected, expected.at[0].set(jnp.nan)) <= 1.0
    keys = jax.random.split(jax.random.key(0), 2)
    assert rewrites.difference(keys, keys) == 0


def row(name: str, lepton: float, optimum: float, to_gain: bool = True) -> dict[str, Any]:
    return {
        "family": "made up",
        "name": name,
        "lepton": [lepton] * 3,
        "optimum": [optimum] * 3,
        "to_gain": to_gain,
        "behind": optimum / lepton,
        "same_program": [],
        "predicted_saving_seconds": lepton - 1,
        "measured_saving_seconds": lepton - 1,
    }


def test_the_summary_counts_what_the_aims_are_about() -> None:
    rows = [row("a", 4.0, 4.1), row("b", 2.0, 4.0), row("c", 0.9, 1.0), row("d", 1.0, 2.0, to_gain=False)]
    found = rewrites.summary([*rows, row("e", 3.0, 3.0)])
    assert (found["cases"], found["paying"], found["slower"]) == (5, 3, 1)
    assert found["near"] == pytest.approx(2 / 3)
    assert found["rank_correlation"] == found["rank_correlation_of_programs"] == pytest.approx(1.0)
    timed = {**row("f", 1.5, 1.0), "measured_saving_seconds": -3.0}
    found = rewrites.summary([*rows, timed])
    assert found["rank_correlation"] == found["rank_correlation_of_programs"] == pytest.approx(0.7)
    assert found["rank_correlation_of_predicted"] == pytest.approx(1.0)  # of a, b and f
    same = rewrites.summary([*rows, {**timed, "same_program": ["naive"]}])
    assert same["rank_correlation"] == pytest.approx(0.7) and same["rank_correlation_of_programs"] > 0.95
    chance = [{**row("a", 0.9, 1.2), "same_program": ["naive", "optimum"]}, row("b", 1.0, 1.0)]
    found = rewrites.summary(chance)
    assert (found["near"], found["slower"]) == (1.0, 0)
    assert (found["near_as_timed"], found["slower_as_timed"]) == (0.0, 1)


def test_programs_of_the_same_instructions_are_known() -> None:
    x = jnp.ones((4, 8))

    def named(a: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(a) * 2, 1)

    once = rewrites.instructions(jax.jit(named), (x,))
    assert "sine" in once
    assert once == rewrites.instructions(jax.jit(lambda b: jnp.sum(2 * jnp.sin(b), axis=-1)), (x,))
    assert once != rewrites.instructions(jax.jit(lambda b: jnp.sum(jnp.cos(b) * 2, 1)), (x,))


def test_every_program_runs_in_every_place() -> None:
    ran: list[str] = []

    def timer(name: str) -> Callable[[], float]:
        def run() -> float:
            ran.append(name)
            return 1.0

        return run

    timers = [timer(name) for name in "abc"]
    assert rewrites.in_turn(timers, 6).tolist() == [[1.0] * 3] * 6
    rounds = ["".join(ran[i : i + 3]) for i in range(0, 18, 3)]
    assert len(set(rounds)) == 6


MODULE = """HloModule jit_f

%fused (p: f32[8]) -> f32[8] {
  ROOT %e = f32[8]{0} exponential(%p), backend_config={"estimated_cycles":"7"}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"10"}
}

%cond (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(50)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %copy = f32[8]{0} copy(%a), backend_config={"estimated_cycles":"3"}
  %while.1 = (s32[], f32[8]) while(%t), condition=%cond, body=%body
}
"""


def test_cycles_count_loops_as_often_as_they_run() -> None:
    assert tpu.cycles(MODULE) == 3 + 50 * 10


def test_without_the_tpu_compiler_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tpu.main([]) == 0
    assert "pip install 'lepton-jax[tpu]'" in capsys.readouterr().out


def test_the_page_holds_every_case() -> None:
    rows = [
        {**row(name, 2.0, 3.0), "family": family, "naive_seconds": 0.001} for name, family in ("ax", "by")
    ]
    text = rewrites.page(rows, rewrites.summary(rows), 7)
    assert text.count("| 1.000 | 2.00 (2.00–2.00) | 3.00 |") == 2
    assert text.count("## x") == text.count("## y") == 1
    assert "| 2 of 2 |" in text
