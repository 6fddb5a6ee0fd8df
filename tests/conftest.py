"""Settings of the test run, made before JAX is imported.

Eight CPU devices, for meshes; passes that raise where they fail; and, since nearly all of the time goes to
compiling: XLA without most of its own optimisations, and a cache of compiled programs that the workers of one
run share. Garbage is looked for rarely, and not among what is there to the end.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile

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


def pytest_collection_finish() -> None:
    """Modules, and what they hold, are there to the end: they are not looked at again."""
    gc.freeze()
