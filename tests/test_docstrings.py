"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLOW = {"lepton_jax.models.decoder", "lepton_jax.models.lepton_net"}  # what they show, tests/models tests


def modules() -> list[str]:
    """The modules with examples, of the passes too."""
    found = []
    for file in sorted([*ROOT.glob("lepton_jax/**/*.py"), *ROOT.glob("passes/**/*.py")]):
        if ">>> " in file.read_text(encoding="utf-8"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if parts[0] == "lepton_jax" else ("lepton_jax", *parts))
            found.append(name.removesuffix(".__init__"))
    return found


def room(module: str) -> str:
    """The package that a module is in; `lepton_jax` for those of its top level."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else parts[0]


@pytest.mark.parametrize("name", sorted({room(each) for each in modules()}))
def test_examples_run(name: str) -> None:
    for module in [each for each in modules() if room(each) == name and each not in SLOW]:
        found = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
        assert not found.failed, module
