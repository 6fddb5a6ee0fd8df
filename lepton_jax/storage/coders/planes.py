"""Elements of several bytes: each byte of them on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from lepton_jax.storage.coders.base import BYTES, Bytes, Coder, DecodeInner, EncodeInner, Kind
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

    def suits(self, kind: Kind) -> bool:
        """See `Coder`."""
        return kind.width in _WIDTHS

    def encode(self, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes | None:
        """See `Coder`."""
        width = kind.width
        if width not in _WIDTHS or len(data) % width:
            return None
        planes = _split(data, width, kind.floats)
        return bytes([width, kind.floats]) + write_parts([inner(plane, BYTES) for plane in planes])

    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """See `Coder`."""
        if len(code) < 2 or code[0] not in _WIDTHS or code[1] > 1 or size % code[0]:
            raise LeptonFileError("the planes of a block are damaged")
        width, floats = code[0], code[1]
        planes = [inner(part, size // width) for part in read_parts(code[2:], width)]
        return _join(planes, floats)


def _split(data: Bytes, width: int, turned: int) -> list[Bytes]:
    """The low bytes of all words, and so on; turned left by a bit before."""
    words: Any = data.view(f"<u{width}")
    if width == 2 and turned:
        low = (words << 1).astype(np.uint8)
        low |= (words >> 15).astype(np.uint8)
        return [low, (words >> 7).astype(np.uint8)]
    if turned:
        words = words << 1 | words >> (8 * width - 1)
    return list(np.ascontiguousarray(words.view(np.uint8).reshape(-1, width).T))


def _join(planes: list[Bytes], turned: int) -> Bytes:
    """The words again, as bytes."""
    width = len(planes)
    if width == 2 and turned:
        high, low = (plane.astype("<u2") for plane in planes[::-1])
        high <<= 7
        high |= low >> 1
        low <<= 15
        high |= low
        return high.view(np.uint8)
    whole = np.empty((len(planes[0]), width), np.uint8)
    for i, plane in enumerate(planes):
        whole[:, i] = plane
    words: Any = whole.reshape(-1).view(f"<u{width}")
    if turned:
        high = words << (8 * width - 1)
        words >>= 1
        words |= high
    found: Bytes = words.view(np.uint8)
    return found
