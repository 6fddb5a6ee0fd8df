"""The bytes of arrays, in blocks that are coded side by side."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lepton_jax.storage.coders import MOST_BYTES, encode_block

_AHEAD: Final = 2


def as_bytes(array: Any) -> NDArray[np.uint8]:
    """The bytes of an array, in C order, little-endian."""
    dtype = array.dtype
    ordered = array.astype(dtype.newbyteorder("<")) if dtype.byteorder == ">" else array
    return np.ascontiguousarray(ordered).reshape(-1).view(np.uint8)


def encoded(data: NDArray[np.uint8], dtype: Any, workers: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The sizes and codes of the blocks of some bytes, a few of them coded ahead.

    Args:
        data: [n].
        dtype: of the elements.
        workers: how many blocks are coded at once; as many as there are processors if None.
    """
    width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    floats = dtype.kind in "fc" or dtype.name.startswith(("bfloat", "float"))
    parts = [data[start : start + MOST_BYTES] for start in range(0, len(data), MOST_BYTES)]
    if len(parts) == 1:
        yield len(data), encode_block(data, width, floats)
        return
    count = workers or os.cpu_count() or 1
    waiting: deque[tuple[int, Future[bytes]]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for part in parts:
            waiting.append((len(part), pool.submit(encode_block, part, width, floats)))
            if len(waiting) >= _AHEAD * count:
                size, code = waiting.popleft()
                yield size, code.result()
        for size, code in waiting:
            yield size, code.result()
