"""Codes by how often each byte occurs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from lepton_jax.storage.coders import ans
from lepton_jax.storage.coders.base import Bytes, Coder, DecodeInner, EncodeInner, Kind
from lepton_jax.storage.errors import LeptonFileError

_FEWEST: Final = 256
_WINDOW: Final = -15
_MEMORY: Final = 9


@dataclass(frozen=True)
class Range(Coder):
    """Range coding of bytes, which comes to their order-0 entropy; see `ans`."""

    number: ClassVar[int] = 2
    name: ClassVar[str] = "range"

    def encode(self, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes | None:
        """See `Coder`."""
        return ans.encode(data) if _FEWEST <= len(data) <= ans.LARGEST else None

    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """See `Coder`."""
        return ans.decode(code, size)


@dataclass(frozen=True)
class Huffman(Coder):
    """Huffman codes of bytes, a table for each 32 KiB: deflate (RFC 1951) without matches.

    Its tables are a few bytes long, so it is for small blocks.
    """

    number: ClassVar[int] = 3
    name: ClassVar[str] = "huffman"

    def encode(self, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes:
        """See `Coder`."""
        run = zlib.compressobj(9, zlib.DEFLATED, _WINDOW, _MEMORY, zlib.Z_HUFFMAN_ONLY)
        return run.compress(data.data) + run.flush()

    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """See `Coder`."""
        run = zlib.decompressobj(_WINDOW)
        try:
            data = run.decompress(code, size + 1)
        except zlib.error as error:
            raise LeptonFileError(f"a Huffman code is damaged: {error}") from error
        if len(data) != size or run.unused_data or not (run.eof or _ends(run)):
            raise LeptonFileError(f"a Huffman code of {size} bytes is damaged")
        return np.frombuffer(data, np.uint8)


def _ends(run: zlib._Decompress) -> bool:
    """Whether nothing but the mark of the end is left."""
    return not run.decompress(run.unconsumed_tail, 1) and run.eof
