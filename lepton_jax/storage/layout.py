"""The bytes of a `.lepton` file around its blocks: the header and the index. See docs/storage.md."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lepton_jax.storage.coders import MOST_BYTES
from lepton_jax.storage.errors import LeptonFileError

MAGIC: Final = b"\x89LEPTON\n"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8sIIQQQ16s8s")
ALIGNMENT: Final = 64
LONGEST_INDEX: Final = 1 << 28
MOST_DIMENSIONS: Final = 64

_SHORT: Final = 8


@dataclass(frozen=True)
class Block:
    """A part of an entry.

    Attributes:
        offset: in the file, a multiple of `ALIGNMENT`.
        stored: its bytes in the file.
        size: the bytes it stands for.
        digest: of the stored bytes.
        coded: whether a coder made them; otherwise they are as they are.
    """

    offset: int
    stored: int
    size: int
    digest: str
    coded: bool


@dataclass(frozen=True)
class Entry:
    """An array of a file.

    Attributes:
        name: unlike all others'.
        dtype: as `dtype_of` takes it.
        shape: of the array.
        blocks: of its bytes, in C order, little-endian.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]

    @property
    def nbytes(self) -> int:
        """The bytes in memory."""
        return math.prod(self.shape) * int(dtype_of(self.dtype).itemsize)

    @property
    def stored(self) -> int:
        """The bytes in the file."""
        return sum(block.stored for block in self.blocks)


@dataclass(frozen=True)
class Index:
    """What is in a file.

    Attributes:
        entries: the arrays, in the order they were written.
        metadata: what JSON can say.
    """

    entries: tuple[Entry, ...]
    metadata: Mapping[str, Any]


def digest(data: Any) -> str:
    """BLAKE2b of 16 bytes, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def dtype_of(name: str) -> Any:
    """The dtype of a name, such as `float32`, `bfloat16`, `int4`: of numbers and bool, little-endian.

    Raises:
        LeptonFileError: there is no such dtype.
    """
    found = _DTYPES.get(name)
    if found is None:
        raise LeptonFileError(f"the file has an array of {name!r}, a dtype that this version does not know")
    return found


def shaped(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of its bytes.

    Raises:
        LeptonFileError: no array can have that shape: it has a size of 0, and others beyond bounds.
    """
    try:
        found: NDArray[Any] = data.view(dtype_of(dtype)).reshape(shape)
    except ValueError as error:
        raise LeptonFileError(f"an array of shape {shape} cannot be made: {error}") from error
    return found


def name_of(dtype: Any) -> str:
    """The name of a dtype.

    Raises:
        LeptonFileError: it cannot be kept in a file, such as objects and strings.
    """
    known = np.dtype(dtype)
    if known.name not in _DTYPES:
        raise LeptonFileError(f"arrays of {known} cannot be kept in a file")
    return str(known.name)


_NUMPY: Final = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
)
_OTHERS: Final = (
    "bfloat16 int2 int4 uint2 uint4 float4_e2m1fn float6_e2m3fn float6_e3m2fn float8_e3m4 float8_e4m3 "
    "float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
)
_DTYPES: Final[dict[str, Any]] = {
    **{name: np.dtype(name).newbyteorder("<") for name in _NUMPY.split()},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _OTHERS.split() if hasattr(ml_dtypes, name)},
}


def write_index(index: Index) -> bytes:
    """The index as JSON in UTF-8."""
    entries = [
        {
            "name": entry.name,
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "blocks": [[b.offset, b.stored, b.size, b.digest, b.coded] for b in entry.blocks],
        }
        for entry in index.entries
    ]
    tree = {"metadata": dict(index.metadata), "entries": entries}
    try:
        return json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise LeptonFileError(f"metadata must be what JSON can say: {error}") from error


def write_header(offset: int, index: bytes) -> bytes:
    """The header of a file whose index, its last part, starts at an offset."""
    whole = hashlib.blake2b(index, digest_size=16).digest()
    fields = (MAGIC, VERSION, 0, offset + len(index), offset, len(index), whole)
    return HEADER.pack(*fields, _short(HEADER.pack(*fields, bytes(_SHORT))))


def read_header(data: bytes, length: int) -> tuple[int, int, bytes]:
    """Where the index is, how long it is, and its digest.

    Args:
        data: the first bytes of the file.
        length: of the file.

    Raises:
        LeptonFileError: this is not the header of a whole file.
    """
    if data[:8] != MAGIC:
        raise LeptonFileError("this is not a .lepton file: it begins with other bytes")
    if len(data) < HEADER.size:
        raise LeptonFileError("the file is cut off within its header")
    _, version, flags, whole, offset, size, checked, short = HEADER.unpack(data[: HEADER.size])
    if _short(data[: HEADER.size - _SHORT] + bytes(_SHORT)) != short:
        raise LeptonFileError("the header of the file is damaged")
    if version != VERSION or flags:
        raise LeptonFileError(
            f"the file has version {version}.{flags}, this Lepton reads version {VERSION}.0"
        )
    if whole != length:
        raise LeptonFileError(
            f"the file has {length} bytes in place of {whole}: it is cut off or was added to"
        )
    if offset < HEADER.size or offset + size != length or size > LONGEST_INDEX:
        raise LeptonFileError("the header of the file is damaged: its index lies outside")
    return offset, size, checked


def read_index(data: bytes, checked: bytes, end: int) -> Index:
    """The index, with everything in it checked.

    Args:
        data: its bytes.
        checked: their digest.
        end: where blocks end.

    Raises:
        LeptonFileError: it is damaged.
    """
    if hashlib.blake2b(data, digest_size=16).digest() != checked:
        raise LeptonFileError("the index of the file is damaged")
    try:
        tree = json.loads(data)
        entries = tuple(_entry(each) for each in tree["entries"])
        metadata = tree["metadata"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, LeptonFileError):
            raise
        raise LeptonFileError(f"the index of the file is damaged: {error}") from error
    if not isinstance(metadata, dict):
        raise LeptonFileError("the index of the file is damaged: its metadata")
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise LeptonFileError("the index of the file is damaged: two arrays have one name")
    _check_places([block for entry in entries for block in entry.blocks], end)
    return Index(entries, metadata)


def _entry(tree: Any) -> Entry:
    name, dtype, shape = tree["name"], tree["dtype"], tree["shape"]
    if not isinstance(name, str) or not isinstance(dtype, str) or not _are_sizes(shape):
        raise LeptonFileError("the index of the file is damaged: an array's name, dtype or shape")
    entry = Entry(name, dtype, tuple(shape), tuple(_block(block) for block in tree["blocks"]))
    if sum(block.size for block in entry.blocks) != entry.nbytes:
        raise LeptonFileError(
            f"the index of the file is damaged: the blocks of {name!r} do not fit its shape"
        )
    return entry


def _block(tree: Any) -> Block:
    offset, stored, size, checked, coded = tree
    if not _are_sizes([offset, stored, size]) or not isinstance(checked, str) or not isinstance(coded, bool):
        raise LeptonFileError("the index of the file is damaged: a block")
    if (
        not 0 < size <= (MOST_BYTES if coded else stored)
        or (stored != size and not coded)
        or offset % ALIGNMENT
    ):
        raise LeptonFileError("the index of the file is damaged: the size or place of a block")
    return Block(offset, stored, size, checked, coded)


def _are_sizes(numbers: Any) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) <= MOST_DIMENSIONS
        and all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)
    )


def _check_places(blocks: Sequence[Block], end: int) -> None:
    """Blocks lie between the header and the index and do not overlap."""
    reached = HEADER.size
    for block in sorted(blocks, key=lambda block: block.offset):
        if block.offset < reached or block.offset + block.stored > end:
            raise LeptonFileError("the index of the file is damaged: blocks lie over one another or outside")
        reached = block.offset + block.stored


def _short(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_SHORT).digest()
