"""Elements of several bytes that have few distinct values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from lepton_jax.storage.coders.base import BYTES, Bytes, Coder, DecodeInner, EncodeInner, Kind
from lepton_jax.storage.errors import LeptonFileError

_WIDTHS: Final = (2, 4, 8)
_MOST: Final = 256
_SOME: Final = 1 << 12


@dataclass(frozen=True)
class Distinct(Coder):
    """A table of at most 256 values, and for each element its place there, which is a byte.

    For weights that share values: palettes that were expanded, integers kept in wide types.
    """

    number: ClassVar[int] = 9
    name: ClassVar[str] = "distinct"

    def suits(self, kind: Kind) -> bool:
        """See `Coder`."""
        return kind.width in _WIDTHS

    def encode(self, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes | None:
        """See `Coder`."""
        if kind.width not in _WIDTHS or len(data) % kind.width:
            return None
        words: Any = data.view(f"<u{kind.width}")
        if len(np.unique(words[:_SOME])) > _MOST:
            return None
        table = np.unique(words)
        if len(table) > min(_MOST, len(words) // 2):
            return None
        places = np.searchsorted(table, words).astype(np.uint8)
        return bytes([kind.width, len(table) - 1]) + table.tobytes() + inner(places, BYTES)

    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """See `Coder`."""
        width = code[0] if len(code) > 1 else 0
        if width not in _WIDTHS or size % width:
            raise LeptonFileError("a block of few distinct values is damaged")
        end = 2 + (code[1] + 1) * width
        if len(code) < end:
            raise LeptonFileError("a block of few distinct values is damaged: it ends in its table")
        table = np.frombuffer(code[2:end], f"<u{width}")
        places = inner(code[end:], size // width)
        if places.max() >= len(table):
            raise LeptonFileError("a block of few distinct values is damaged: its table is too short")
        return table[places].view(np.uint8)
