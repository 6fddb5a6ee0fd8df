"""The pages of docs/ keep their word: their examples run, each page on its own, from top to bottom."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from lepton_jax.rewrite import pass_names

DOCS = Path(__file__).resolve().parents[1] / "docs"
FIGURES = set(DOCS.glob("measured*.md"))  # written by benchmarks
PAGES = sorted(set(DOCS.rglob("*.md")) - FIGURES)


@pytest.mark.usefixtures("forget_passes")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8")
    found = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert found
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in found:
        code = "\n" * text[: block.start(1)].count("\n") + block[1]
        exec(compile(code, str(page), "exec"), vars(module))


def test_every_pass_is_described() -> None:
    table = (DOCS / "passes.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\| \[?`([\w-]+)`", table, re.MULTILINE))
    assert described == set(pass_names())
