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
import zstandard
from numpy.typing import NDArray

from lepton_jax.storage._keys import is_key
from lepton_jax.storage.coders import MOST_BYTES
from lepton_jax.storage.errors import LeptonFileError

MAGIC: Final = b"\x89LEPTON\n"
VERSION: Final = 2
"""Version 1 has other digests, a plain index, and coded blocks at multiples of 64 too."""
HEADER: Final = struct.Struct("<8sIIQQQ16s8s")
ALIGNMENT: Final = 64
LONGEST_INDEX: Final = 1 << 28
MOST_DIMENSIONS: Final = 64

_SHORT: Final = 8
_LEVEL: Final = 19
_FAST: Final = 9
_MOST_TIMES: Final = 100
_LONG: Final = 1 << 20


@dataclass(frozen=True)
class Block:
    """A part of an entry.

    Attributes:
        offset: in the file, a multiple of `ALIGNMENT` if the bytes are not coded.
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


def digest(data: Any, version: int = VERSION) -> str:
    """16 bytes in hexadecimal: the first of SHA-256, which processors have in hardware; once BLAKE2b."""
    if version == 1:
        return hashlib.blake2b(data, digest_size=16).hexdigest()
    return hashlib.sha256(data).hexdigest()[:32]


def dtype_of(name: str) -> Any:
    """The dtype of a name, such as `float32`, `bfloat16`, `int4`: of numbers and bool, little-endian.

    That of random keys, `key/threefry2x32`, is that of their data.

    Raises:
        LeptonFileError: there is no such dtype.
    """
    found = _DTYPES["uint32"] if is_key(name) else _DTYPES.get(name)
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
    """The index: JSON in UTF-8, as a zstd frame."""
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
        text = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise LeptonFileError(f"metadata must be what JSON can say: {error}") from error
    return zstandard.ZstdCompressor(level=_LEVEL if len(text) < _LONG else _FAST).compress(text)


def write_header(offset: int, index: bytes) -> bytes:
    """The header of a file whose index, its last part, starts at an offset."""
    whole = hashlib.blake2b(index, digest_size=16).digest()
    fields = (MAGIC, VERSION, 0, offset + len(index), offset, len(index), whole)
    return HEADER.pack(*fields, _short(HEADER.pack(*fields, bytes(_SHORT))))


def read_header(data: bytes, length: int) -> tuple[int, int, bytes, int]:
    """Where the index is, how long it is, its digest, and the version of the file.

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
    if not 1 <= version <= VERSION or flags:
        raise LeptonFileError(
            f"the file has version {version}.{flags}, this Lepton reads versions 1.0 to {VERSION}.0: "
            "a newer one may read it"
        )
    if whole != length:
        raise LeptonFileError(
            f"the file has {length} bytes in place of {whole}: it is cut off or was added to"
        )
    if offset < HEADER.size or offset + size != length or size > LONGEST_INDEX:
        raise LeptonFileError("the header of the file is damaged: its index lies outside")
    return offset, size, checked, version


def read_index(data: bytes, checked: bytes, end: int, version: int = VERSION) -> Index:
    """The index, with everything in it checked.

    Args:
        data: its bytes.
        checked: their digest.
        end: where blocks end.
        version: of the file.

    Raises:
        LeptonFileError: it is damaged.
    """
    if hashlib.blake2b(data, digest_size=16).digest() != checked:
        raise LeptonFileError("the index of the file is damaged")
    text = data if version == 1 else _plain(data)
    try:
        tree = json.loads(text)
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


def _plain(data: bytes) -> bytes:
    """A compressed index as it was."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= min(LONGEST_INDEX, _LONG + _MOST_TIMES * len(data)):
            raise LeptonFileError("the index of the file is damaged: it would be too long")
        return zstandard.ZstdDecompressor(max_window_size=LONGEST_INDEX).decompress(
            data, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise LeptonFileError(f"the index of the file is damaged: {error}") from error


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
        or (offset % ALIGNMENT and not coded)
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
