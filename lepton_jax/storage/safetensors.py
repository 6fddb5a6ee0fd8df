"""Files of safetensors: their layout, read and written without loss.

The format: the length of a header, u64; the header, JSON in UTF-8, which gives each tensor's dtype, shape and
place; the bytes of the tensors without gaps. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lepton_jax.storage._keys import key_data
from lepton_jax.storage._replace import replacing
from lepton_jax.storage.blocks import as_bytes
from lepton_jax.storage.errors import LeptonFileError
from lepton_jax.storage.layout import MOST_DIMENSIONS, dtype_of, name_of, shaped

_LONGEST_HEADER: Final = 100_000_000
_DTYPES: Final = {
    "BOOL": "bool",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BF16": "bfloat16",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
_NAMES: Final = {name: short for short, name in _DTYPES.items()}


@dataclass(frozen=True)
class SafetensorsFile:
    """What a file of safetensors holds.

    Attributes:
        header: its header, as it stands in the file.
        tensors: its arrays, which lie in the file; those of dtypes that NumPy has not, as bytes.
    """

    header: bytes
    tensors: Mapping[str, NDArray[Any]]


def read_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """The arrays of a file, mapped into memory.

    Raises:
        LeptonFileError: this is no file of safetensors.
        OSError: it cannot be read.
    """
    length = Path(path).stat().st_size
    whole = np.memmap(path, np.uint8, "r") if length else np.zeros(0, np.uint8)
    size = int.from_bytes(whole[:8].tobytes(), "little")
    if length < 8 or size > min(length - 8, _LONGEST_HEADER):
        raise LeptonFileError(f"{Path(path).name} is no file of safetensors: its header does not fit into it")
    header = whole[8 : 8 + size].tobytes()
    data = whole[8 + size :]
    tensors, reached = {}, 0
    for name, short, shape, start, end in sorted(_described(header), key=lambda each: each[3:]):
        if start != reached or end < start or end > len(data):
            raise LeptonFileError(f"the file of safetensors is damaged: {name!r} is not where it should be")
        reached = end
        tensors[name] = _as_array(data[start:end], short, shape, name)
    if reached != len(data):
        raise LeptonFileError("the file of safetensors is damaged: it has bytes that belong to no tensor")
    return SafetensorsFile(header, tensors)


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], header: bytes | None = None
) -> None:
    """Write arrays as a file of safetensors, in place of what is there.

    Args:
        path: of the file.
        tensors: by name, in order.
        header: as it was read; made anew if None.

    Raises:
        LeptonFileError: safetensors have no such dtype: a float of fewer than 8 bits, say.
        OSError: the file cannot be written.
    """
    keys = [name for name, array in tensors.items() if key_data(array) is not None]
    if keys:
        raise LeptonFileError(
            f"{keys[0]!r} holds random keys, which safetensors have not: give jax.random.key_data of it"
        )
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    header = _header(arrays) if header is None else header
    with replacing(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for array in arrays.values():
            file.write(as_bytes(array).data)


def _header(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    described, at = {}, 0
    for name, array in arrays.items():
        short = _NAMES.get(name_of(array.dtype))
        if short is None:
            raise LeptonFileError(f"{name!r} is {array.dtype}, which safetensors have not")
        described[name] = {
            "dtype": short,
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    header = json.dumps(described, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)


def _described(header: bytes) -> Iterator[tuple[str, str, tuple[int, ...], int, int]]:
    """Names, dtypes, shapes, and places of tensors."""
    try:
        tree = json.loads(header)
        for name, about in tree.items():
            if name != "__metadata__":
                start, end = about["data_offsets"]
                shape = tuple(about["shape"])
                if len(shape) > MOST_DIMENSIONS or not all(
                    type(n) is int and 0 <= n < 1 << 62 for n in (start, end, *shape)
                ):
                    raise LeptonFileError(
                        f"the file of safetensors is damaged: the shape or place of {name!r}"
                    )
                yield name, str(about["dtype"]), shape, start, end
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, LeptonFileError):
            raise
        raise LeptonFileError(f"the file of safetensors is damaged: its header, {error}") from error


def _as_array(data: NDArray[np.uint8], short: str, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    known = _DTYPES.get(short)
    if known is None:  # of fewer than 8 bits, or newer
        return data
    if math.prod(shape) * dtype_of(known).itemsize != len(data):
        raise LeptonFileError(f"the file of safetensors is damaged: {name!r} has not the bytes of its shape")
    return shaped(data, known, shape)
