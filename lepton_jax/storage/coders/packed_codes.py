"""Codes of a few bits, in bytes without gaps, as `lepton_jax.numerics.packing` puts them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Final

import numpy as np

from lepton_jax.storage.coders._table import entropy, histogram
from lepton_jax.storage.coders.base import BYTES, Bytes, Coder, DecodeInner, EncodeInner, Kind
from lepton_jax.storage.errors import LeptonFileError

_MOST_AXES: Final = 6
_HEADER: Final = 1 + 3 * 4
_WIDTHS: Final = (4, 2, 1)
_GAIN: Final = 0.99
_SAMPLE: Final = 1 << 18


@dataclass(frozen=True)
class PackedCodes(Coder):
    """Codes of 1 to 7 bits, packed along one axis of an array of bytes: a byte each, which are then coded.

    A code of five bits lies in two bytes, which say less on their own than together. Which axis and how many
    bits is found by trying: those that make the entropy least.
    """

    number: ClassVar[int] = 8
    name: ClassVar[str] = "codes"

    def suits(self, kind: Kind) -> bool:
        """See `Coder`."""
        return kind.width == 1 and 0 < len(kind.shape) <= _MOST_AXES

    def encode(self, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes | None:
        """See `Coder`."""
        found = _found(data, kind.shape)[1]
        if found is None:
            return None
        bits, form = found
        codes = _unpack(data.reshape(form), bits)
        if not np.array_equal(_pack(codes, bits, form), data):
            return None
        return bytes([bits]) + b"".join(n.to_bytes(4, "little") for n in form) + inner(codes, BYTES)

    def rate(self, data: Bytes, shape: tuple[int, ...]) -> float:
        """About how long the code is, for each byte, by some of the bytes; 1 where it does not apply."""
        return _found(data, shape)[0]

    def decode(self, code: memoryview, size: int, inner: DecodeInner) -> Bytes:
        """See `Coder`."""
        bits = code[0] if len(code) > _HEADER else 0
        form = tuple(int.from_bytes(code[1 + 4 * i : 5 + 4 * i], "little") for i in range(3))
        count = _count(form[1], bits) if 0 < bits < 8 else 0
        if not count or math.prod(form) != size:
            raise LeptonFileError("a block of packed codes is damaged")
        return _pack(inner(code[_HEADER:], form[0] * count * form[2]), bits, form)


def _found(data: Bytes, shape: tuple[int, ...]) -> tuple[float, tuple[int, tuple[int, int, int]] | None]:
    """The bits and the form that make the entropy least, and the entropy for each byte."""
    best, found = 1.0, None
    for bits, form in _forms(shape):
        if form[1] > _SAMPLE:
            continue
        outer = max(_SAMPLE // (form[1] * form[2]), 1)
        part = data.reshape(form)[:outer, :, : max(_SAMPLE // form[1], 1)]
        least = min(best, _GAIN * entropy(histogram(part.reshape(-1))))
        codes = _unpack(part, bits)
        rate = entropy(histogram(codes)) * len(codes) / part.size
        if rate < least:
            best, found = rate, (bits, form)
    return best, found


def _forms(shape: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Bits, and the sizes before the axis, of it and after it."""
    for axis, length in enumerate(shape):
        form = math.prod(shape[:axis]), length, math.prod(shape[axis + 1 :])
        yield from ((bits, form) for bits in range(1, 8) if _count(length, bits))


def _lengths(count: int, bits: int) -> list[int]:
    """The bytes of each plane."""
    return [-(-count * width // 8) for width in _WIDTHS if bits & width]


def _count(length: int, bits: int) -> int:
    """The most codes that take so many bytes along an axis; 0: none do."""
    count = length * 8 // bits
    while count > 0 and sum(_lengths(count, bits)) > length:
        count -= 1
    return count if sum(_lengths(count, bits)) == length else 0


def _unpack(packed: Bytes, bits: int) -> Bytes:
    """Codes, [outer * count * rest], of bytes, [outer, length, rest]."""
    outer, length, rest = packed.shape
    count = _count(length, bits)
    codes = np.zeros((outer, count, rest), np.uint8)
    widths = [width for width in _WIDTHS if bits & width]
    ends = list(accumulate(_lengths(count, bits)))
    for start, end, width, used in zip([0, *ends], ends, widths, accumulate(widths), strict=False):
        plane = packed[:, start:end]
        for at in range(8 // width):
            low, high = at * (end - start), min((at + 1) * (end - start), count)
            if low < high:
                part = plane[:, : high - low] >> (at * width) & (2**width - 1)
                codes[:, low:high] |= part << (bits - used)
    return codes.reshape(-1)


def _pack(codes: Bytes, bits: int, form: tuple[int, ...]) -> Bytes:
    """What `_unpack` took apart."""
    outer, length, rest = form
    count = _count(length, bits)
    whole = codes.reshape(outer, count, rest)
    packed = np.zeros(form, np.uint8)
    widths = [width for width in _WIDTHS if bits & width]
    ends = list(accumulate(_lengths(count, bits)))
    for start, end, width, used in zip([0, *ends], ends, widths, accumulate(widths), strict=False):
        for at in range(8 // width):
            low, high = at * (end - start), min((at + 1) * (end - start), count)
            if low < high:
                part = whole[:, low:high] >> (bits - used) & (2**width - 1)
                packed[:, start : start + high - low] |= part << (at * width)
    return packed.reshape(-1)
