"""What a coder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

SMALL: Final = 1 << 18
"""Blocks of so many bytes are coded by all coders; of others a sample says which will do."""


@dataclass(frozen=True)
class Kind:
    """What bytes are made of.

    Attributes:
        width: the bytes of an element, which divide their number.
        floats: whether elements are floats.
        shape: of an array of uint8, which may have codes of fewer bits packed along an axis.
    """

    width: int = 1
    floats: bool = False
    shape: tuple[int, ...] = ()


BYTES: Final = Kind()

EncodeInner = Callable[[Bytes, Kind], bytes]
"""Codes of parts."""

DecodeInner = Callable[[memoryview, int], Bytes]
"""Parts of codes: the code, and how many bytes it stands for."""


@dataclass(frozen=True)
class Coder(ABC):
    """Makes blocks of bytes shorter, and whole again.

    Attributes:
        number: in the file; never given to another coder.
        name: for people.
    """

    number: ClassVar[int]
    name: ClassVar[str]

    def suits(self, kind: Kind) -> bool:
        """Whether it is worth trying for such elements."""
        return True

    @abstractmethod
    def encode(self, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes | None:
        """The code of some bytes, at least one; None where it does not apply.

        Args:
            data: [n].
            kind: what they are made of.
            inner: codes parts.
        """

    @abstractmethod
    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """The bytes of a code.

        Args:
            code: what `encode` made.
            size: how many bytes there were.
            inner: decodes parts.

        Raises:
            LeptonFileError: the code is damaged.
        """
