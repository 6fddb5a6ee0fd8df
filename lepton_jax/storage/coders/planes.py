"""Elements of several bytes: each byte of them on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from lepton_jax.storage.coders.base import Bytes, Coder, DecodeInner, EncodeInner
from lepton_jax.storage.coders.parts import read_parts, write_parts
from lepton_jax.storage.errors import LeptonFileError

_WIDTHS: Final = (2, 4, 8)


@dataclass(frozen=True)
class Planes(Coder):
    """All first bytes, then all second bytes, and so on, each plane coded on its own.

    Floats are turned by one bit beforehand, so that bfloat16 and float32 have their exponent in one byte.
    The exponents of weights are few, mantissas are noise. ZipNN (arXiv:2411.05239) and DFloat11
    (arXiv:2504.11651) do the same.
    """

    number: ClassVar[int] = 5
    name: ClassVar[str] = "planes"

    def suits(self, width: int, floats: bool) -> bool:
        """See `Coder`."""
        return width in _WIDTHS

    def encode(self, data: Bytes, width: int, floats: bool, inner: EncodeInner) -> bytes | None:
        """See `Coder`."""
        if width not in _WIDTHS or len(data) % width:
            return None
        words: Any = data.view(f"<u{width}")
        if floats:
            words = words << 1 | words >> (8 * width - 1)
        planes = np.ascontiguousarray(np.ascontiguousarray(words).view(np.uint8).reshape(-1, width).T)
        return bytes([width, floats]) + write_parts([inner(plane, 1, False) for plane in planes])

    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """See `Coder`."""
        if len(code) < 2 or code[0] not in _WIDTHS or code[1] > 1 or size % code[0]:
            raise LeptonFileError("the planes of a block are damaged")
        width, floats = code[0], code[1]
        parts = read_parts(code[2:], width)
        planes = np.empty((size // width, width), np.uint8)
        for i, part in enumerate(parts):
            planes[:, i] = inner(part, size // width)
        words: Any = planes.reshape(-1).view(f"<u{width}")
        if floats:
            words = words >> 1 | words << (8 * width - 1)
        found: Bytes = words.view(np.uint8)
        return found
