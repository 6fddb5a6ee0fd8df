"""Garbage collection while graphs grow.

A graph is many small objects that all live until the work is done. Python's collector looks
at all of them again and again meanwhile, which makes long programs cost more per equation.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from typing import Final

_LOCK: Final = threading.Lock()
_state = {"pauses": 0, "resume": False}


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Collect no garbage inside; in several threads, until the last one leaves."""
    with _LOCK:
        if _state["pauses"] == 0:
            _state["resume"] = gc.isenabled()
            gc.disable()
        _state["pauses"] += 1
    try:
        yield
    finally:
        with _LOCK:
            _state["pauses"] -= 1
            if _state["pauses"] == 0 and _state["resume"]:
                gc.enable()
