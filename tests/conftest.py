"""Settings of the test run, made before JAX is imported.

Eight CPU devices, for meshes; passes that raise where they fail; and, since nearly all of the time goes to
compiling: XLA without most of its own optimisations, and a cache of compiled programs that the workers of one
run share. Garbage is looked for rarely, and not among what is there to the end. The modules' generators of
random numbers start anew at each test, which draws the same numbers as it does alone.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from typing import Any, Final

import numpy as np
import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["LEPTON_STRICT"] = "1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
gc.set_threshold(50_000, 20, 20)

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit the folder of the run
    cache = tempfile.mkdtemp(prefix="lepton-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["LEPTON_CACHE"] = os.path.join(cache, "lepton")  # what was measured here decides nothing
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


_GENERATORS: Final[list[tuple[np.random.Generator, Any]]] = []


def pytest_collection_finish() -> None:
    """Modules, and what they hold, are there to the end: they are not looked at again."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "tests"]
    found = (value for module in modules for value in vars(module).values())
    generators = {id(value): value for value in found if isinstance(value, np.random.Generator)}
    _GENERATORS.extend((each, each.bit_generator.state) for each in generators.values())
    gc.freeze()


@pytest.fixture(autouse=True)
def _numbers_of_its_own() -> None:
    """A test draws the same numbers whichever tests ran before it."""
    for generator, state in _GENERATORS:
        generator.bit_generator.state = state
