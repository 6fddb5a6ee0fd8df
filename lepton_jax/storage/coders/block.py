"""A block of bytes under the coder that suits it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np

from lepton_jax.storage.coders import ans
from lepton_jax.storage.coders._table import entropy, histogram
from lepton_jax.storage.coders.base import BYTES, SMALL, Bytes, Coder, EncodeInner, Kind
from lepton_jax.storage.coders.bits import Packed
from lepton_jax.storage.coders.distinct import Distinct
from lepton_jax.storage.coders.entropy import Huffman, Range
from lepton_jax.storage.coders.packed_codes import PackedCodes
from lepton_jax.storage.coders.plain import Constant, Raw
from lepton_jax.storage.coders.planes import Planes
from lepton_jax.storage.coders.repeats import Zstandard
from lepton_jax.storage.coders.sparse import Sparse
from lepton_jax.storage.errors import LeptonFileError

_RAW: Final = Raw()
_CONSTANT: Final = Constant()
_RANGE: Final = Range()
_HUFFMAN: Final = Huffman()
_ZSTD: Final = Zstandard()
_BITS: Final = Packed()
_CODES: Final = PackedCodes()
_NESTED: Final[tuple[Coder, ...]] = (_CODES, Distinct(), Planes(), Sparse())
CODERS: Final[dict[int, Coder]] = {
    coder.number: coder for coder in (_RAW, _CONSTANT, _RANGE, _HUFFMAN, _ZSTD, _BITS, *_NESTED)
}
"""By their numbers in files."""

MOST_BYTES: Final = 1 << 22
"""The largest block."""

LOSSES: Final = {"small": 0.009, "fast": 0.03}
"""By how much a block may be longer than the shortest code found, where that makes it faster."""

_DEEPEST: Final = 3
_SLICE: Final = 1 << 13
_SLICES: Final = 8
_FAR: Final = 0.7
_NEAR: Final = 1.01
_FEWEST: Final = 256


@dataclass
class _Spare:
    """The bytes by which a block may still be longer than the shortest code, for speed.

    Attributes:
        share: of the shortest code.
        left: bytes; None until the shortest is known.
    """

    share: float
    left: float | None = None

    def spend(self, cost: float) -> bool:
        """Whether so many bytes are left; they are taken."""
        if self.left is None or cost > self.left:
            return False
        self.left -= max(cost, 0)
        return True


def encode_block(data: Bytes, kind: Kind = BYTES, *, loss: float = LOSSES["small"]) -> bytes:
    """The number of a coder and its code.

    Blocks of up to 256 KiB are coded by all coders that may do, and the shortest code is kept. Of others, a
    sample says which coders may do; a faster one is taken where the block gets longer by no more than `loss`.

    Args:
        data: [n], n between 1 and `MOST_BYTES`.
        kind: what they are made of.
        loss: the share of the shortest code.
    """
    return _coded(data, kind, 0, _Spare(loss))


def _coded(data: Bytes, kind: Kind, depth: int, spare: _Spare) -> bytes:
    """The code of a block or of a part of one."""

    def inner(part: Bytes, kind: Kind) -> bytes:
        return _coded(part, kind, depth + 1, spare)

    constant = _encode(_CONSTANT, data, kind, inner)
    if constant is not None:
        return constant
    nested = [coder for coder in _NESTED if depth < _DEEPEST and coder.suits(kind)]
    if len(data) <= SMALL:
        codes = [_encode(coder, data, kind, inner) for coder in nested]
        found = _shortest(data, [code for code in codes if code is not None], spare.share)
    else:
        found = _estimated(data, kind, nested, inner, spare, whole=not depth)
    return found if len(found) <= len(data) else _encode_flat(_RAW, data)


def _shortest(data: Bytes, codes: list[bytes], loss: float) -> bytes:
    """The shortest of some codes and of those of coders that have no parts."""
    codes += [_encode_flat(coder, data) for coder in (_RAW, _ZSTD, _HUFFMAN)]
    bits = _encode(_BITS, data, BYTES, _no_parts)
    found = min(codes if bits is None else [*codes, bits], key=len)
    allowed = max(loss - LOSSES["small"], 0) * len(found)
    if len(data) < _FEWEST or ans.size_of(histogram(data)) > len(found) - allowed:
        return found
    return min(found, _encode_flat(_RANGE, data), key=len)


def _estimated(
    data: Bytes, kind: Kind, nested: list[Coder], inner: EncodeInner, spare: _Spare, whole: bool
) -> bytes:
    """The code of a large block, by the coder that does best on a sample."""
    sample = _sample(data, kind.width)
    rates: dict[Coder, float] = {}
    if _CODES in nested:
        rates[_CODES] = _CODES.rate(data, kind.shape)
    for coder in nested:
        code = None if coder is _CODES else coder.encode(sample, kind, _as_long)
        rates[coder] = rates.get(coder, 1.0) if code is None else len(code) / len(sample)
    flat = min(_flat_rates(sample).values())
    best = min(rates, key=rates.__getitem__, default=None)
    rate = flat if best is None else min(rates[best], flat)
    if spare.left is None:
        spare.left = spare.share * rate * len(data)
    code = None if best is None or rates[best] >= flat else _encode(best, data, kind, inner)
    found = _flat(data, _flat_rates(sample), spare) if code is None else code
    if whole and _ZSTD.far(data) < _FAR * len(found):
        return min(found, bytes([_ZSTD.number]) + _ZSTD.fast(data), key=len)
    return found


def _flat(data: Bytes, rates: dict[Coder, float], spare: _Spare) -> bytes:
    """The code of a coder that has no parts: the shortest, or a faster one that is hardly longer."""
    shortest = min(rates.values()) * len(data)
    if spare.spend(len(data) - shortest):
        return _encode_flat(_RAW, data)
    plain = bytes([_ZSTD.number]) + _ZSTD.literals(data)
    if spare.spend(len(plain) - shortest):
        return plain
    codes = [plain]
    for coder, rate in rates.items():
        if rate * len(data) <= _NEAR * shortest:
            code = _encode(coder, data, BYTES, _no_parts)
            codes += [] if code is None else [code]
    return min(codes, key=len)


def _flat_rates(sample: Bytes) -> dict[Coder, float]:
    """About how long the codes of coders that have no parts are, for each byte."""
    used = int(sample.view(np.int8).max()) - int(sample.view(np.int8).min())
    return {
        _RAW: 1.0,
        _RANGE: entropy(histogram(sample)),
        _ZSTD: len(_ZSTD.fast(sample)) / len(sample),
        _BITS: used.bit_length() / 8,
    }


def _as_long(part: Bytes, kind: Kind) -> bytes:
    """Zeros, about as many as the part's code has bytes."""
    rate = min(_flat_rates(part).values()) if len(part) else 0.0
    planes = Planes()
    if planes.suits(kind) and len(part):
        rate = min(rate, len(planes.encode(part, kind, _as_long) or part) / len(part))
    return bytes(int(rate * len(part)))


def _no_parts(part: Bytes, kind: Kind) -> bytes:
    raise AssertionError("this coder has no parts")


def decode_block(code: memoryview, size: int, *, depth: int = 0) -> Bytes:
    """The bytes of a block.

    Args:
        code: what `encode_block` made.
        size: how many bytes there were, at most eight times `MOST_BYTES` for parts of blocks.
        depth: how many coders this is a part of.

    Raises:
        LeptonFileError: the code is damaged.
    """
    coder = CODERS.get(code[0]) if len(code) else None
    if coder is None or depth > _DEEPEST or not 0 < size <= 8 * MOST_BYTES:
        raise LeptonFileError("a block is damaged: no coder made it")
    found = coder.decode(code[1:], size, functools.partial(decode_block, depth=depth + 1))
    if len(found) != size:
        raise LeptonFileError(f"a block is damaged: it has {len(found)} bytes in place of {size}")
    return found


def describe_block(code: memoryview) -> str:
    """The name of the coder."""
    coder = CODERS.get(code[0]) if len(code) else None
    return "unknown" if coder is None else coder.name


def _encode(coder: Coder, data: Bytes, kind: Kind, inner: EncodeInner) -> bytes | None:
    code = coder.encode(data, kind, inner)
    return None if code is None else bytes([coder.number]) + code


def _encode_flat(coder: Coder, data: Bytes) -> bytes:
    """The code of a coder that takes all bytes, and has no parts."""
    return _encode(coder, data, BYTES, _no_parts) or b""


def _sample(data: Bytes, width: int) -> Bytes:
    """Some of the elements, from all over the block."""
    starts = np.linspace(0, len(data) - _SLICE, _SLICES).astype(int) // width * width
    return np.concatenate([data[start : start + _SLICE] for start in starts])
