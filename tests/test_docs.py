"""The pages of docs/ keep their word: their examples run, each page on its own, from top to bottom."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from lepton_jax.rewrite import pass_names
from tests.properties._families import rules

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


def test_every_rewrite_rule_is_on_a_page() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "rewrites").glob("*.md")))
    rooms = ("/simplify/", "/loops/", "/fuse/", "/lower/_convolution/", "/lower/convolution.py")
    ours = [name for name, rule in rules().items() if any(room in rule.where for room in rooms)]
    assert len(ours) > 200
    assert [name for name in sorted(ours) if f"`{name}`" not in pages] == []
