"""Wrong passes are there while a fuzzer's test runs, and what it finds is written to a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_jax.rewrite import register, unregister
from tests.fuzz._wrong_passes import WRONG


@pytest.fixture(autouse=True)
def wrong_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LEPTON_REPRO_DIR", str(tmp_path / "reproducers"))
    for cls in WRONG:
        register(cls)
    yield
    for cls in WRONG:
        unregister(cls.name)
