"""The pages of docs/ keep their word: their examples run, each page on its own, from top to bottom."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest

from lepton_jax import passes
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


def test_every_rewrite_is_on_a_page() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = {*rules(), *fired()}
    assert len(names) > 300
    assert [name for name in sorted(names) if f"`{name}`" not in pages] == []


def fired() -> set[str]:
    """The names that passes give to what they do without a rule, as far as they are constants of a module."""
    found = set()
    for info in pkgutil.walk_packages(passes.__path__, f"{passes.__name__}."):
        module = importlib.import_module(info.name)
        for call in ast.walk(ast.parse(inspect.getsource(module))):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr == "fire"
            ):
                with contextlib.suppress(NameError):  # it depends on what is at hand
                    found.add(eval(ast.unparse(call.args[0]), vars(module)))
    return found
