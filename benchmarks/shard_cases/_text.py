"""What the cases that train need."""

from __future__ import annotations

from pathlib import Path

import jax

from benchmarks._common import data


def text_for_eight() -> Path | None:
    """Tiny Shakespeare, for eight devices; None, and a line that says what is missing, without either."""
    if (files := data("tinyshakespeare.txt")) is None:
        return None
    if jax.device_count() < 8:
        print("not measured: XLA_FLAGS=--xla_force_host_platform_device_count=8 gives 8 devices")
        return None
    return files[0]
