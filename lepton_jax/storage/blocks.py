"""The bytes of arrays, in blocks that are coded side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_jax.storage.coders import MOST_BYTES, Kind


def as_bytes(array: Any) -> NDArray[np.uint8]:
    """The bytes of an array, in C order, little-endian."""
    dtype = array.dtype
    ordered = array.astype(dtype.newbyteorder("<")) if dtype.byteorder == ">" else array
    return np.ascontiguousarray(ordered).reshape(-1).view(np.uint8)


def parts_of(
    data: NDArray[np.uint8], dtype: Any, shape: tuple[int, ...]
) -> Iterator[tuple[NDArray[np.uint8], Kind]]:
    """The blocks of an array, and what they are made of: whole rows, if these are short enough.

    Args:
        data: its bytes, [n].
        dtype: of the array.
        shape: of the array.
    """
    width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    floats = dtype.kind in "fc" or dtype.name.startswith(("bfloat", "float"))
    packed = dtype.name == "uint8"
    if len(data) <= MOST_BYTES:
        if len(data):
            yield data, Kind(width, floats, shape if packed else ())
        return
    row = math.prod(shape[1:]) * dtype.itemsize
    step = MOST_BYTES // row * row or MOST_BYTES
    for start in range(0, len(data), step):
        part = data[start : start + step]
        rows = (len(part) // row, *shape[1:])
        yield part, Kind(width, floats, rows if packed and row <= MOST_BYTES else ())
