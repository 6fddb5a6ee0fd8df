"""Codes of what occurs again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import zstandard

from lepton_jax.storage.coders.base import Bytes, Coder, DecodeInner, EncodeInner
from lepton_jax.storage.errors import LeptonFileError

_LEVEL: Final = 19
_SMALL: Final = 1 << 18
_FAST: Final = 3
_WINDOW: Final = 1 << 27


@dataclass(frozen=True)
class Zstandard(Coder):
    """Zstandard (RFC 8878): repeats and their entropy; thorough for small blocks, fast for others."""

    number: ClassVar[int] = 4
    name: ClassVar[str] = "zstd"

    def encode(self, data: Bytes, width: int, floats: bool, inner: EncodeInner) -> bytes:
        """See `Coder`."""
        level = _LEVEL if len(data) <= _SMALL else _FAST
        return zstandard.ZstdCompressor(level=level).compress(data.tobytes())

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
