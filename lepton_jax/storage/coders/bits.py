"""Bytes that use few of their bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lepton_jax.storage.coders.base import Bytes, Coder, DecodeInner, EncodeInner, Kind
from lepton_jax.storage.errors import LeptonFileError


@dataclass(frozen=True)
class Packed(Coder):
    """Bytes that are all less than a power of two, in so many bits each."""

    number: ClassVar[int] = 6
    name: ClassVar[str] = "bits"

    def suits(self, kind: Kind) -> bool:
        """See `Coder`."""
        return kind.width == 1

    def encode(self, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes | None:
        """See `Coder`."""
        low = int(data.view(np.int8).min())
        bits = (int(data.view(np.int8).max()) - low).bit_length()
        if not 0 < bits < 8:
            return None
        return bytes([low & 255, bits]) + join(data - np.uint8(low & 255), bits).tobytes()

    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """See `Coder`."""
        if len(code) < 2 or not 0 < code[1] < 8 or len(code) - 2 != -(-size * code[1] // 8):
            raise LeptonFileError("a block of packed bits is damaged")
        return split(np.frombuffer(code[2:], np.uint8), code[1])[:size] + np.uint8(code[0])


def split(data: Bytes, bits: int) -> Bytes:
    """Fields of a stream of bits, the lowest first: a byte for each, the last one filled with zeros."""
    count = -(-len(data) * 8 // bits)
    words = _words(data, bits)
    fields: Bytes = ((words[:, None] >> _shifts(bits)) & np.uint64((1 << bits) - 1)).astype(np.uint8)
    return fields.reshape(-1)[:count]


def join(fields: Bytes, bits: int) -> Bytes:
    """A stream of bits, the lowest first, without gaps, the last byte filled with zeros."""
    size = -(-len(fields) * bits // 8)
    rows = -(-len(fields) // 8)
    padded = np.zeros((rows, 8), np.uint64)
    padded.reshape(-1)[: len(fields)] = fields
    words = np.bitwise_or.reduce(padded << _shifts(bits), 1).astype("<u8")
    kept: Bytes = words.view(np.uint8).reshape(rows, 8)[:, :bits]
    return np.ascontiguousarray(kept).reshape(-1)[:size]


def _shifts(bits: int) -> Any:
    return np.arange(8, dtype=np.uint64) * np.uint64(bits)


def _words(data: Bytes, bits: int) -> Any:
    """Every so many bytes, which are eight fields, as a word."""
    rows = -(-len(data) // bits)
    padded = np.zeros(rows * bits, np.uint8)
    padded[: len(data)] = data
    words = np.zeros((rows, 8), np.uint8)
    words[:, :bits] = padded.reshape(rows, bits)
    return words.view("<u8").reshape(-1)
