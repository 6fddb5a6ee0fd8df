"""What the processor of this machine is, by its own account."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def _described() -> dict[str, str]:
    """The first processor's lines of `/proc/cpuinfo`; nothing where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def model() -> str:
    """Its maker's name for it, with family, model and stepping where these are known."""
    known = _described()
    parts = [known.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    return " ".join(filter(None, parts)) or platform.processor() or platform.machine()


def has(*instructions: str) -> bool:
    """Whether it has these instructions, as Linux calls them: `amx_bf16`, `avx512_vnni`; False if unknown."""
    return set(instructions) <= set(_described().get("flags", "").split())


def multiplies_bfloat16() -> bool:
    """Whether it has instructions for products of bfloat16: of matrices (AMX), or dot products in AVX-512."""
    return has("amx_bf16") or has("avx512_bf16")


def multiplies_vectors() -> bool:
    """Whether it multiplies with the vectors of AVX-512 (VNNI), and not with matrices (AMX).

    `vpdpbusd` of VNNI multiplies unsigned numbers with signed ones; AMX multiplies either.
    """
    return has("avx512_vnni") and not has("amx_int8")
