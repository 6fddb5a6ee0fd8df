"""What a coder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

EncodeInner = Callable[[Bytes, int, bool], bytes]
"""Codes of parts: the bytes, those of one element, whether elements are floats."""

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

    def suits(self, width: int, floats: bool) -> bool:
        """Whether it is worth trying for elements of so many bytes."""
        return True

    @abstractmethod
    def encode(self, data: Bytes, width: int, floats: bool, inner: EncodeInner) -> bytes | None:
        """The code of some bytes, at least one; None where it does not apply.

        Args:
            data: [n].
            width: the bytes of an element, which divide n.
            floats: whether elements are floats.
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
