"""What JAX is set to in this thread, and evaluation at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax


def x64_enabled() -> bool:
    """Whether 64-bit types are on in this thread."""
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]


def matmul_precision() -> Any:
    """The default precision of matrix products in this thread."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def backend_platform() -> str:
    """The platform of the default backend: cpu, gpu or tpu."""
    name = jax.default_backend()
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Evaluate now, although a trace may be running around (for constant folding)."""
    with jax.core.ensure_compile_time_eval():
        yield
