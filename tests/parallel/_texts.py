"""Texts of compiled programs and messages of XLA, cut down to what tells something.

From jax 0.10.2 and 0.12, libtpu 0.0.50.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final


def _read(name: str) -> str:
    return (Path(__file__).parent / "texts" / f"{name}.txt").read_text()


CPU_SCAN: Final = _read("cpu_scan")
"""A loop; groups in their three forms; a result of two arrays; a permutation that moves nothing."""

TPU_ASYNC: Final = _read("tpu_async")
"""An all-gather in three parts, a reduce-scatter as an all-reduce, a loop from 1 to 8 without a count."""

TPU_SLICES: Final = _read("tpu_slices")
"""Two slices: what goes between them goes through the hosts; devices are numbered within a slice."""

GPU_ASYNC: Final = _read("gpu_async")
"""Starts that hold operands and results, one that holds results alone, one that wraps a computation."""

OUT_OF_MEMORY: Final = _read("out_of_memory")
"""As libtpu says it today."""

OUT_OF_MEMORY_LISTED: Final = _read("out_of_memory_listed")
"""As it said it, with the largest allocations."""
