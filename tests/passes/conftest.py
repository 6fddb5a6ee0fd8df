"""The same random numbers for a test, whichever tests run before it and in whichever worker."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from tests.passes import _lowering, _quantize


def _seed(name: str) -> None:
    for module in (_lowering, _quantize):
        module.RNG.bit_generator.state = np.random.default_rng(zlib.crc32(name.encode())).bit_generator.state


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before a module is imported, which may draw numbers."""
    _seed(collector.name)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before a test."""
    _seed(item.nodeid.rpartition("/")[2])
