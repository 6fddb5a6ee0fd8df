"""Writing a `.lepton` file: block after block, in place of the old file only when it is whole."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lepton_jax.storage._keys import key_data
from lepton_jax.storage._replace import replacing
from lepton_jax.storage.blocks import as_bytes, parts_of
from lepton_jax.storage.coders import LOSSES, MOST_BYTES, Kind, encode_block
from lepton_jax.storage.errors import LeptonFileError
from lepton_jax.storage.layout import (
    ALIGNMENT,
    HEADER,
    Block,
    Entry,
    Index,
    digest,
    name_of,
    write_header,
    write_index,
)

Coding = Literal["small", "fast", "raw"]

_AHEAD: Final = 2


@contextmanager
def writing(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
    *,
    coding: Coding = "small",
    workers: int | None = None,
) -> Iterator[Writer]:
    """A file that is being written: put in place at the end of the context, if nothing goes wrong.

    Arrays are coded while others are written, so that only a few blocks are in memory besides the arrays.

    Args:
        path: of the file; what is there is replaced.
        metadata: what JSON can say.
        coding: `small`: each block under the coder that makes it shortest; from 256 KiB on, under a faster
            one if that makes it at most 0.9 % longer; `fast`: at most 3 % longer; `raw`: bytes as they are,
            which can be mapped into memory.
        workers: how many blocks are coded at once; as many as there are processors if None.

    Raises:
        OSError: the file cannot be written.
        LeptonFileError: two arrays have one name, a dtype cannot be kept, or metadata is not JSON's.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "m.lepton"
        >>> with writing(path) as file:
        ...     file.add("w", np.zeros((2, 3), np.float32))
    """
    if coding not in (*LOSSES, "raw"):
        raise ValueError(f"coding is 'small', 'fast' or 'raw', not {coding!r}")
    with replacing(path) as file, Writer(file, coding, workers) as writer:
        yield writer
        writer.finish({} if metadata is None else metadata)


@dataclass
class _Pending:
    """An array of which blocks are being coded."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    progress: Callable[[int], None] | None
    blocks: list[Block] = field(default_factory=list)


class Writer:
    """Where arrays of a file are added; made by `writing`.

    Args:
        file: that is written, from its beginning.
        coding: how blocks are coded.
        workers: how many at once.
    """

    def __init__(self, file: IO[bytes], coding: Coding, workers: int | None) -> None:
        self._file = file
        self._coding = coding
        self._workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers)
        self._arrays: dict[str, _Pending] = {}
        self._coded: deque[tuple[_Pending, int, Future[tuple[bytes, str]]]] = deque()
        file.write(bytes(HEADER.size))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, name: str, array: Any, progress: Callable[[int], None] | None = None) -> None:
        """Write an array. Short arrays are copied, coded beside others, and written soon.

        Args:
            name: unlike those before.
            array: of numbers or bool, of any shape; or random keys of JAX, which `Reader` gives back as such.
            progress: told of the bytes of each block that is written.

        Raises:
            LeptonFileError: there is an array of that name, or its name or dtype cannot be kept.
        """
        if not isinstance(name, str):
            raise LeptonFileError(f"the name of an array is text, not {name!r}")
        if name in self._arrays:
            raise LeptonFileError(f"there is an array {name!r} already")
        keys = key_data(array)
        whole = np.asarray(array if keys is None else keys[0])
        dtype = name_of(whole.dtype)
        data = as_bytes(whole)
        pending = _Pending(name, dtype if keys is None else keys[1], tuple(whole.shape), progress)
        self._arrays[name] = pending
        if self._coding == "raw":
            self._write_raw(pending, data)
            return
        short = len(data) <= MOST_BYTES
        for part, kind in parts_of(data.copy() if short else data, whole.dtype, whole.shape):
            self._coded.append((pending, len(part), self._pool.submit(self._code, part, kind)))
            self._write_to(_AHEAD * self._workers)
        if not short:
            self._write_to(0)

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Write what is still being coded, the index, and the header in front of all."""
        self._write_to(0)
        entries = tuple(
            Entry(each.name, each.dtype, each.shape, tuple(each.blocks)) for each in self._arrays.values()
        )
        index = write_index(Index(entries, metadata))
        offset = self._file.tell()
        self._file.write(index)
        self._file.seek(0)
        self._file.write(write_header(offset, index))

    def _code(self, part: NDArray[np.uint8], kind: Kind) -> tuple[bytes, str]:
        code = encode_block(part, kind, loss=LOSSES[self._coding])
        return code, digest(code)

    def _write_to(self, left: int) -> None:
        """Write blocks in their order until so many are still being coded."""
        while len(self._coded) > left:
            pending, size, future = self._coded.popleft()
            code, checked = future.result()
            self._put(pending, Block(self._file.tell(), len(code), size, checked, coded=True), code)

    def _write_raw(self, pending: _Pending, data: NDArray[np.uint8]) -> None:
        if len(data):
            at = self._file.tell()
            self._file.write(bytes(-at % ALIGNMENT))
            block = Block(self._file.tell(), len(data), len(data), digest(data), coded=False)
            self._put(pending, block, data.data)

    def _put(self, pending: _Pending, block: Block, stored: bytes | memoryview) -> None:
        self._file.write(stored)
        pending.blocks.append(block)
        if pending.progress is not None:
            pending.progress(block.size)
