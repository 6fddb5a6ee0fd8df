"""Arrays as few bytes, for what goes from host to host."""

from __future__ import annotations

import hashlib
import math
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import numpy as np

from lepton_jax.storage._keys import as_keys, is_key, key_data
from lepton_jax.storage.blocks import as_bytes, parts_of
from lepton_jax.storage.coders import LOSSES, MOST_BYTES, decode_block, encode_block
from lepton_jax.storage.errors import LeptonFileError
from lepton_jax.storage.layout import MOST_DIMENSIONS, dtype_of, name_of, shaped

_MARK: Final = b"LPA2"
_FIRST_MARK: Final = b"LPA1"
_DIGEST: Final = 16
_MOST_BYTES: Final = 1 << 36
_BLOCK: Final = struct.Struct("<II16s")


def encode(array: Any, *, coding: Literal["small", "fast"] = "small", workers: int | None = None) -> bytes:
    """An array as few bytes, without loss.

    Args:
        array: of numbers or bool, of any shape; or random keys of JAX.
        coding: `small`, or `fast`: at most 3 % longer, as in `writing`.
        workers: how many blocks are coded at once; as many as there are processors if None.

    Raises:
        LeptonFileError: its dtype cannot be kept, such as objects, or it has more than 64 dimensions.
        ValueError: another coding.

    Example:
        >>> code = encode(np.arange(6, dtype=np.int16).reshape(2, 3))
        >>> decode(code).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    if coding not in LOSSES:
        raise ValueError(f"coding is 'small' or 'fast', not {coding!r}")
    keys = key_data(array)
    whole = np.asarray(array if keys is None else keys[0])
    name = (name_of(whole.dtype) if keys is None else keys[1]).encode()
    parts = list(parts_of(as_bytes(whole), whole.dtype, whole.shape))

    def code_of(part: Any) -> tuple[int, bytes, bytes]:
        code = encode_block(*part, loss=LOSSES[coding])
        return len(part[0]), code, _digest(code)

    codes = _side_by_side(code_of, parts, workers)
    head = struct.pack(f"<BB{len(name)}s{whole.ndim}Q", len(name), whole.ndim, name, *whole.shape)
    head += struct.pack("<I", len(codes))
    head += b"".join(_BLOCK.pack(size, len(code), checked) for size, code, checked in codes)
    return b"".join((_MARK, _digest(head), head, *(code for _, code, _ in codes)))


def decode(code: bytes | memoryview, *, most_bytes: int = _MOST_BYTES, workers: int | None = None) -> Any:
    """The array of a code.

    Args:
        code: what `encode` made.
        most_bytes: what the array may take in memory.
        workers: how many blocks are decoded at once; as many as there are processors if None.

    Returns:
        An array of NumPy, or random keys of JAX.

    Raises:
        LeptonFileError: the code is damaged, or its array takes more than allowed.
    """
    view = memoryview(code)
    mark, checked, body = bytes(view[:4]), bytes(view[4 : 4 + _DIGEST]), view[4 + _DIGEST :]
    if mark not in (_MARK, _FIRST_MARK):
        raise LeptonFileError("this is not the code of an array: it begins with other bytes")
    if mark == _FIRST_MARK and hashlib.blake2b(body, digest_size=_DIGEST).digest() != checked:
        raise LeptonFileError("the code of an array is damaged")
    try:
        named, rank = body[0], body[1]
        name = bytes(body[2 : 2 + named]).decode()
        shape = struct.unpack_from(f"<{rank}Q", body, 2 + named)
        start = 2 + named + 8 * rank
        places, head = (_first_places if mark == _FIRST_MARK else _places)(body, start)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise LeptonFileError(f"the code of an array is damaged: {error}") from error
    if mark == _MARK and _digest(body[:head]) != checked:
        raise LeptonFileError("the code of an array is damaged")
    if rank > MOST_DIMENSIONS:
        raise LeptonFileError(
            f"the array has {rank} dimensions, more than the {MOST_DIMENSIONS} that are read"
        )
    size = math.prod(shape) * dtype_of(name).itemsize
    if size > most_bytes:
        raise LeptonFileError(f"the array takes {size:,} bytes, more than the {most_bytes:,} allowed")
    sizes = [place[0] for place in places] if mark == _MARK else _first_sizes(size)
    if len(sizes) != len(places) or sum(sizes) != size or max(sizes, default=0) > MOST_BYTES:
        raise LeptonFileError("the code of an array is damaged: its blocks do not fit its shape")
    whole = np.empty(size, np.uint8)
    ends = np.cumsum(sizes).tolist()

    def fill(place: tuple[int, tuple[int, memoryview, bytes | None]]) -> None:
        number, (_, stored, wanted) = place
        if wanted is not None and _digest(stored) != wanted:
            raise LeptonFileError("the code of an array is damaged")
        whole[ends[number] - sizes[number] : ends[number]] = decode_block(stored, sizes[number])

    _side_by_side(fill, list(enumerate(places)), workers)
    found = shaped(whole, name, shape)
    return as_keys(found, name) if is_key(name) else found


def _digest(data: Any) -> bytes:
    return hashlib.sha256(data).digest()[:_DIGEST]


def _side_by_side(run: Any, items: list[Any], workers: int | None) -> list[Any]:
    """What a function makes of each of some items."""
    if len(items) < 2:
        return [run(item) for item in items]
    with ThreadPoolExecutor(min(workers or os.cpu_count() or 1, len(items))) as pool:
        return list(pool.map(run, items))


def _places(body: memoryview, start: int) -> tuple[list[tuple[int, memoryview, bytes]], int]:
    """Of each block: its size, its code and that one's digest; and where the first begins."""
    (count,) = struct.unpack_from("<I", body, start)
    head = start + 4 + count * _BLOCK.size
    if head > len(body):
        raise LeptonFileError("the code of an array is damaged: it ends before its blocks")
    found, at = [], head
    for size, length, checked in _BLOCK.iter_unpack(body[start + 4 : head]):
        found.append((size, body[at : at + length], checked))
        at += length
    if at != len(body):
        raise LeptonFileError("the code of an array is damaged: its blocks do not fit it")
    return found, head


def _first_places(body: memoryview, start: int) -> tuple[list[tuple[int, memoryview, None]], int]:
    """The same of a code of the first version: each code after its length."""
    found: list[tuple[int, memoryview, None]] = []
    at = start
    while at < len(body):
        length = int.from_bytes(body[at : at + 4], "little")
        found.append((0, body[at + 4 : at + 4 + length], None))
        at += 4 + length
    if at != len(body):
        raise LeptonFileError("the code of an array is damaged: its blocks do not fit it")
    return found, start


def _first_sizes(size: int) -> list[int]:
    return [min(MOST_BYTES, size - start) for start in range(0, min(size, 1 << 40), MOST_BYTES)]
