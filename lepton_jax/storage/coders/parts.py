"""Several codes, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jax.storage.errors import LeptonFileError


def write_parts(parts: Sequence[bytes]) -> bytes:
    """The lengths of all parts but the last, u32, and the parts."""
    return b"".join(len(part).to_bytes(4, "little") for part in parts[:-1]) + b"".join(parts)


def read_parts(code: memoryview, count: int) -> list[memoryview]:
    """The parts.

    Raises:
        LeptonFileError: they are longer than the code.
    """
    start = 4 * (count - 1)
    found = []
    for i in range(count - 1):
        length = int.from_bytes(code[4 * i : 4 * i + 4], "little")
        found.append(code[start : start + length])
        start += length
    if start > len(code):
        raise LeptonFileError("a block is damaged: its parts are longer than it")
    return [*found, code[start:]]
