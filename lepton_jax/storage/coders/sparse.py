"""Arrays of which most elements are zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from lepton_jax.storage.coders.base import BYTES, Bytes, Coder, DecodeInner, EncodeInner, Kind
from lepton_jax.storage.coders.parts import read_parts, write_parts
from lepton_jax.storage.errors import LeptonFileError

_ESCAPE: Final = 255
_MOST: Final = 0.5


@dataclass(frozen=True)
class Sparse(Coder):
    """The elements that are not zero, and before each the number of zeros; both coded on their own.

    Relative indices, as in Deep Compression (Han et al., arXiv:1510.00149): a byte of 255 stands for 255
    zeros that no element follows yet. Zero is what has no bit set: -0.0 is an element.
    """

    number: ClassVar[int] = 7
    name: ClassVar[str] = "sparse"

    def encode(self, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes | None:
        """See `Coder`."""
        width = kind.width
        elements = data.reshape(-1, width)
        at = np.flatnonzero(elements.any(1) if width > 1 else data)
        if len(at) > _MOST * len(elements) or not len(at):
            return None
        gaps = np.diff(at, prepend=-1) - 1
        escapes, rest = np.divmod(gaps, _ESCAPE)
        ends = np.cumsum(escapes + 1)
        stream = np.full(int(ends[-1]), _ESCAPE, np.uint8)
        stream[ends - 1] = rest
        values = np.ascontiguousarray(elements[at]).reshape(-1)
        header = bytes([width]) + len(at).to_bytes(8, "little") + len(stream).to_bytes(8, "little")
        return header + write_parts([inner(stream, BYTES), inner(values, Kind(width, kind.floats))])

    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """See `Coder`."""
        width = code[0] if len(code) > 17 else 0
        count, length = (int.from_bytes(code[i : i + 8], "little") for i in (1, 9))
        if not width or size % width or not 0 < count <= size // width or not count <= length <= size + count:
            raise LeptonFileError("a sparse block is damaged")
        gaps, values = read_parts(code[17:], 2)
        stream = inner(gaps, length)
        steps = np.where(stream == _ESCAPE, _ESCAPE, stream.astype(np.int64) + 1)
        at: Any = np.cumsum(steps)[stream != _ESCAPE] - 1
        if len(at) != count or stream[-1] == _ESCAPE or at[-1] >= size // width:
            raise LeptonFileError("a sparse block is damaged: its elements do not fit")
        data = np.zeros((size // width, width), np.uint8)
        data[at] = inner(values, count * width).reshape(count, width)
        return data.reshape(-1)
