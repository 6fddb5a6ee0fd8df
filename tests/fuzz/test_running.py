"""A run of the fuzzer: what it finds is made small and written to a file."""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import pytest

from lepton_jax import fuzz
from lepton_jax.fuzz.program import make_args
from lepton_jax.fuzz.run import script
from tests.fuzz._programs import program, statement


def test_shrinking_keeps_what_matters() -> None:
    made = next(p for p in map(fuzz.generate, range(50, 200)) if "jnp.tanh(" in p.source() and p.size > 10)

    def fails(candidate: fuzz.Program) -> bool:
        try:
            text = str(jax.make_jaxpr(candidate.function())(*make_args(candidate.types, 0)))
        except Exception:
            return False
        return " tanh" in text

    small = fuzz.shrink(made, fails, seconds=40)
    assert fails(small)
    assert sum(s.kind != "constant" for s in small.body.walk()) <= 3
    assert small.size < made.size / 2


def test_a_found_failure_is_small_and_its_file_shows_it(tmp_path: Path) -> None:
    told: list[int] = []
    result = fuzz.run(
        2,
        77,
        passes="subtracts",
        out=tmp_path,
        size=12,
        shrink_seconds=20,
        on_program=lambda s, _: told.append(s),
    )
    assert told == [77, 78]
    assert not result.ok
    found = result.failures[0]
    assert found.failure.kind == "value"
    assert found.program.size <= 5
    assert found.file is not None
    assert f"seed {found.program.seed}: " in str(result)
    text = found.file.read_text()
    assert text.startswith("# Found by `lepton fuzz`. Run this file to see:\n# value: result 0: ")
    with pytest.raises(SystemExit, match="still fails: value"):
        exec(compile(text, str(found.file), "exec"), {"__name__": "__main__"})
    mended = text.replace('"subtracts"', '"none"')
    exec(compile(mended, str(found.file), "exec"), {"__name__": "__main__"})


def test_a_file_says_how_the_failure_was_found() -> None:
    text = script(
        program(statement("{0} @ {0}", "a0")), fuzz.Failure("value", "x"), "cse", "exact", {"target": "gpu"}
    )
    assert '"cse", "exact", seed=' in text and "target='gpu'" in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    fuzz.add_arguments(parser)
    options = ["--seed", "3", "--size", "6", "--out", str(tmp_path / "none"), "--passes", "none"]
    assert fuzz.fuzz_command(parser.parse_args(["--count", "2", *options])) == 0
    assert capsys.readouterr().out.startswith("2 programs in ")
    assert not (tmp_path / "none").exists()
    assert fuzz.fuzz_command(parser.parse_args(["--count", "9", "--seconds", "0", *options])) == 0
    assert capsys.readouterr().out.startswith("0 programs in ")


@pytest.mark.parametrize("first", [1240])
def test_ten_random_programs(first: int) -> None:
    """The short run; `lepton fuzz` is the long one."""
    result = fuzz.run(10, first, size=12, shrink_seconds=5)
    assert result.ok, str(result) + "".join(f"\n{f.program.source()}\n{f.failure}" for f in result.failures)
    assert result.programs + result.invalid == 10
    assert result.invalid <= 1
