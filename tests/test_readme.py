"""The README keeps its word: the examples run, the two lines are what CI runs, the links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[tuple[int, str]]:
    """The fenced blocks of one language: the line of the README that each starts on, and its text."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [(README[: block.start(1)].count("\n"), block[1]) for block in found]


def test_the_examples_run_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    examples = blocks("python")
    assert len(examples) >= 5
    namespace: dict[str, object] = {"__name__": "readme"}
    for line, code in examples:
        # Blank lines before the code make a traceback name the README's own lines.
        exec(compile("\n" * line + code, str(ROOT / "README.md"), "exec"), namespace)
    assert "(100, 8)" in capsys.readouterr().out


def test_the_two_lines_are_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    lines = [text.strip() for _, text in blocks("sh")]
    assert lines == re.findall(r'^(?:DEMO|TESTS)="(.*)"$', ci, re.MULTILINE)
    assert lines[0].endswith("lepton demo")
    assert "pytest" in lines[1]
    for name in ("DEMO", "TESTS"):
        assert re.search(rf'^ *as_typed "[^ ]+" "\${name}"$', ci, re.MULTILINE), f"CI does not run {name}"


def test_links_lead_to_files_of_the_repository() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    local = [link.partition("#")[0] for link in links if "://" not in link]
    assert "docs/house.svg" in local
    assert [link for link in local if not (ROOT / link).exists()] == []
