"""A block of bytes under the coder that makes it shortest."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np

from lepton_jax.storage.coders.base import Bytes, Coder
from lepton_jax.storage.coders.bits import Packed
from lepton_jax.storage.coders.entropy import Huffman, Range
from lepton_jax.storage.coders.plain import Constant, Raw
from lepton_jax.storage.coders.planes import Planes
from lepton_jax.storage.coders.repeats import Zstandard
from lepton_jax.storage.coders.sparse import Sparse
from lepton_jax.storage.errors import LeptonFileError

_TRIED: Final[tuple[Coder, ...]] = (
    Huffman(),
    Range(),
    Zstandard(),
    Packed(),
    Planes(),
    Sparse(),
)
CODERS: Final[dict[int, Coder]] = {coder.number: coder for coder in (Raw(), Constant(), *_TRIED)}
"""By their numbers in files."""

MOST_BYTES: Final = 1 << 22
"""The largest block."""

_DEEPEST: Final = 3
_SAMPLE: Final = 1 << 16
_SLICES: Final = 4
_FINALISTS: Final = 2


def encode_block(data: Bytes, width: int = 1, floats: bool = False, *, depth: int = 0) -> bytes:
    """The number of a coder and its code: the shortest that was found.

    What is longer than 256 KiB is tried on a sample, and coded whole by the two coders that do best there.

    Args:
        data: [n], n between 1 and `MOST_BYTES`.
        width: the bytes of an element.
        floats: whether elements are floats.
        depth: how many coders this is a part of.
    """
    constant = _encode(CODERS[Constant.number], data, width, floats, depth)
    if constant is not None:
        return constant
    tried = [
        coder for coder in _TRIED if coder.suits(width, floats) and (depth < _DEEPEST or _is_flat(coder))
    ]
    if len(data) > _SAMPLE * _SLICES:
        sample = _sample(data, width)
        sizes = {coder: _size(coder, sample, width, floats, depth) for coder in tried}
        tried = sorted((coder for coder in tried if sizes[coder] < len(sample)), key=sizes.__getitem__)[
            :_FINALISTS
        ]
    codes = [_encode(coder, data, width, floats, depth) for coder in tried]
    found = min((code for code in codes if code is not None), key=len, default=None)
    return bytes([Raw.number]) + data.tobytes() if found is None or len(found) > len(data) else found


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


def _is_flat(coder: Coder) -> bool:
    return not isinstance(coder, Planes | Sparse)


def _encode(coder: Coder, data: Bytes, width: int, floats: bool, depth: int) -> bytes | None:
    def inner(part: Bytes, width: int, floats: bool) -> bytes:
        return encode_block(part, width, floats, depth=depth + 1)

    code = coder.encode(data, width, floats, inner)
    return None if code is None else bytes([coder.number]) + code


def _size(coder: Coder, data: Bytes, width: int, floats: bool, depth: int) -> int:
    code = _encode(coder, data, width, floats, depth)
    return len(data) + 1 if code is None else len(code)


def _sample(data: Bytes, width: int) -> Bytes:
    """Some of the elements, from all over the block."""
    starts = np.linspace(0, len(data) - _SAMPLE, _SLICES).astype(int) // width * width
    return np.concatenate([data[start : start + _SAMPLE] for start in starts])
