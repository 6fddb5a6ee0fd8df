"""Settings of the test run, made before JAX is imported.

Eight CPU devices, for meshes; passes that raise where they fail; and, since nearly all of the time goes to
compiling: XLA without most of its own optimisations, on one thread a program, with those emitters that are
quickest. What takes longest is begun first. Garbage is looked for rarely, and not among what is there to the
end. The modules' generators of random numbers start anew at each test, which draws the same numbers as it
does alone.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import pytest

_QUICK: Final = {
    "0.10": "--xla_cpu_use_fusion_emitters=false",
    "0.12": "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE",
}
"""By version of jaxlib, since a process ends at a flag that its XLA does not know."""

_FLAGS: Final = [
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_parallel_codegen_split_count=1",
    _QUICK.get(".".join(version("jaxlib").split(".")[:2]), ""),
]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["LEPTON_STRICT"] = "1"
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
gc.set_threshold(50_000, 20, 20)

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the folder of the run
    kept = tempfile.mkdtemp(prefix="lepton-tests-")  # what was measured on this machine decides nothing
    os.environ["LEPTON_CACHE"] = kept
    atexit.register(shutil.rmtree, kept, ignore_errors=True)


_LONGEST: Final = ("test_demo", "test_examples", "test_docs", "test_packaging")
"""Modules whose tests take many seconds each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first, so that at the end no worker waits for another."""
    items.sort(key=lambda item: item.path.stem not in _LONGEST)


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


@pytest.fixture
def forget_passes() -> Iterator[None]:
    """Passes that a page or an example registers are gone after it."""
    from lepton_jax.rewrite import pass_names, unregister

    before = set(pass_names())
    yield
    for name in set(pass_names()) - before:
        unregister(name)
