"""Codes of what occurs again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import zstandard

from lepton_jax.storage.coders.base import SMALL, Bytes, Coder, DecodeInner, EncodeInner, Kind
from lepton_jax.storage.errors import LeptonFileError

_LEVEL: Final = 19
_FAST: Final = 3
_PROBE: Final = 6
_TINY: Final = 1 << 13
_WINDOW: Final = 1 << 27
_WITHOUT_MATCHES: Final = {
    "window_log": 22,
    "hash_log": 6,
    "chain_log": 6,
    "search_log": 1,
    "min_match": 7,
    "target_length": 0,
    "strategy": zstandard.STRATEGY_FAST,
}


@dataclass(frozen=True)
class Zstandard(Coder):
    """Zstandard (RFC 8878): repeats and their entropy; thorough for small blocks, fast for others.

    Without matches, it is a fast coder by how often each byte occurs: Huffman codes of at most 11 bits, a
    table for each 128 KiB.
    """

    number: ClassVar[int] = 4
    name: ClassVar[str] = "zstd"

    def encode(self, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes:
        """See `Coder`."""
        if len(data) > SMALL:
            return self.fast(data)
        if len(data) > _TINY and self._at(data, _PROBE) > 0.99 * len(plain := self.literals(data)):
            return plain
        return zstandard.ZstdCompressor(level=_LEVEL).compress(data.data)

    def fast(self, data: Bytes) -> bytes:
        """A code for which matches are sought in passing."""
        return zstandard.ZstdCompressor(level=_FAST).compress(data.data)

    def literals(self, data: Bytes) -> bytes:
        """A code without matches."""
        options = zstandard.ZstdCompressionParameters.from_level(1, **_WITHOUT_MATCHES)
        return zstandard.ZstdCompressor(compression_params=options).compress(data.data)

    def far(self, data: Bytes) -> int:
        """The size with nothing but matches, which is soon known."""
        return self._at(data, -7)

    def _at(self, data: Bytes, level: int) -> int:
        return len(zstandard.ZstdCompressor(level=level).compress(data.data))

    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """See `Coder`."""
        try:
            if zstandard.frame_content_size(code) != size:
                raise LeptonFileError(f"a zstd code of {size} bytes is damaged: it says another size")
            run = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
            data = run.decompress(code, allow_extra_data=False)  # into so many bytes as the frame says
        except zstandard.ZstdError as error:
            raise LeptonFileError(f"a zstd code is damaged: {error}") from error
        if len(data) != size:
            raise LeptonFileError(f"a zstd code of {size} bytes is damaged")
        return np.frombuffer(data, np.uint8)
