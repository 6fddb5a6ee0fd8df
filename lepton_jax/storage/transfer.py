"""Arrays as few bytes, for what goes from host to host."""

from __future__ import annotations

import hashlib
import math
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lepton_jax.storage.blocks import as_bytes, encoded
from lepton_jax.storage.coders import MOST_BYTES, decode_block
from lepton_jax.storage.errors import LeptonFileError
from lepton_jax.storage.layout import MOST_DIMENSIONS, dtype_of, name_of, shaped

_MARK: Final = b"LPA1"
_DIGEST: Final = 16
_MOST_BYTES: Final = 1 << 36


def encode(array: Any, *, workers: int | None = None) -> bytes:
    """An array as few bytes, without loss.

    Args:
        array: of numbers or bool, of any shape.
        workers: how many blocks are coded at once; as many as there are processors if None.

    Raises:
        LeptonFileError: its dtype cannot be kept, such as objects.

    Example:
        >>> code = encode(np.arange(6, dtype=np.int16).reshape(2, 3))
        >>> decode(code).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    whole = np.asarray(array)
    name = name_of(whole.dtype).encode()
    data = as_bytes(whole)
    codes = [code for _, code in encoded(data, whole.dtype, workers)] if len(data) else []
    head = struct.pack(f"<BB{len(name)}s{whole.ndim}Q", len(name), whole.ndim, name, *whole.shape)
    body = head + b"".join(struct.pack("<I", len(code)) + code for code in codes)
    return _MARK + hashlib.blake2b(body, digest_size=_DIGEST).digest() + body


def decode(
    code: bytes | memoryview, *, most_bytes: int = _MOST_BYTES, workers: int | None = None
) -> NDArray[Any]:
    """The array of a code.

    Args:
        code: what `encode` made.
        most_bytes: what the array may take in memory.
        workers: how many blocks are decoded at once; as many as there are processors if None.

    Raises:
        LeptonFileError: the code is damaged, or its array takes more than allowed.
    """
    view = memoryview(code)
    body = view[len(_MARK) + _DIGEST :]
    if bytes(view[: len(_MARK)]) != _MARK:
        raise LeptonFileError("this is not the code of an array: it begins with other bytes")
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != view[len(_MARK) : len(_MARK) + _DIGEST]:
        raise LeptonFileError("the code of an array is damaged")
    try:
        named, rank = body[0], body[1]
        name = bytes(body[2 : 2 + named]).decode()
        shape = struct.unpack_from(f"<{rank}Q", body, 2 + named)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise LeptonFileError(f"the code of an array is damaged: {error}") from error
    dtype = dtype_of(name)
    size = math.prod(shape) * dtype.itemsize
    if rank > MOST_DIMENSIONS or size > most_bytes:
        raise LeptonFileError(f"the array takes {size:,} bytes, more than the {most_bytes:,} allowed")
    blocks = _blocks(body[2 + named + 8 * rank :], -(-size // MOST_BYTES))
    whole = np.empty(size, np.uint8)

    def fill(place: tuple[int, memoryview]) -> None:
        part = whole[place[0] * MOST_BYTES : (place[0] + 1) * MOST_BYTES]
        part[:] = decode_block(place[1], len(part))

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        list(pool.map(fill, enumerate(blocks)))
    return shaped(whole, name, shape)


def _blocks(body: memoryview, count: int) -> list[memoryview]:
    """The codes of blocks, each after its length."""
    found: list[memoryview] = []
    at = 0
    while at < len(body):
        length = int.from_bytes(body[at : at + 4], "little")
        found.append(body[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(body) or len(found) != count:
        raise LeptonFileError("the code of an array is damaged: its blocks do not fit its shape")
    return found
