"""Bytes as they are, and bytes that are all the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lepton_jax.storage.coders.base import Bytes, Coder, DecodeInner, EncodeInner, Kind
from lepton_jax.storage.errors import LeptonFileError


@dataclass(frozen=True)
class Raw(Coder):
    """Bytes as they are."""

    number: ClassVar[int] = 0
    name: ClassVar[str] = "raw"

    def encode(self, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes:
        """See `Coder`."""
        return data.tobytes()

    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """See `Coder`."""
        if len(code) != size:
            raise LeptonFileError(f"{len(code)} bytes are kept of a block of {size}")
        return np.frombuffer(code, np.uint8)


@dataclass(frozen=True)
class Constant(Coder):
    """One byte in place of all, which are the same."""

    number: ClassVar[int] = 1
    name: ClassVar[str] = "constant"

    def encode(self, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes | None:
        """See `Coder`."""
        return bytes([data[0]]) if data[0] == data[-1] and not np.any(data != data[0]) else None

    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """See `Coder`."""
        if len(code) != 1:
            raise LeptonFileError("a block of equal bytes is damaged")
        return np.full(size, code[0], np.uint8)
