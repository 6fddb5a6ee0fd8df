"""Writing a `.lepton` file: block after block, in place of the old file only when it is whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Literal

import numpy as np

from lepton_jax.storage._replace import replacing
from lepton_jax.storage.blocks import as_bytes, encoded
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

Coding = Literal["small", "raw"]


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
        coding: `small`: each block under the coder that makes it shortest; `raw`: bytes as they are, which
            can be mapped into memory.
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
    if coding not in ("small", "raw"):
        raise ValueError(f"coding is 'small' or 'raw', not {coding!r}")
    with replacing(path) as file:
        file.write(bytes(HEADER.size))
        writer = Writer(file, coding, workers)
        yield writer
        writer.finish({} if metadata is None else metadata)


class Writer:
    """Where arrays of a file are added; made by `writing`.

    Args:
        file: that is written.
        coding: how blocks are coded.
        workers: how many at once.
    """

    def __init__(self, file: IO[bytes], coding: Coding, workers: int | None) -> None:
        self._file = file
        self._coding = coding
        self._workers = workers
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, array: Any, progress: Callable[[int], None] | None = None) -> None:
        """Write an array.

        Args:
            name: unlike those before.
            array: of numbers or bool, of any shape.
            progress: told of the bytes of each block that is written.

        Raises:
            LeptonFileError: there is an array of that name, or its name or dtype cannot be kept.
        """
        if not isinstance(name, str):
            raise LeptonFileError(f"the name of an array is text, not {name!r}")
        if name in self._entries:
            raise LeptonFileError(f"there is an array {name!r} already")
        whole = np.asarray(array)
        dtype = name_of(whole.dtype)
        data = as_bytes(whole)
        raw = [(len(data), data.data)] if len(data) else []
        blocks = []
        for size, stored in raw if self._coding == "raw" else encoded(data, whole.dtype, self._workers):
            offset = self._align()
            self._file.write(stored)
            blocks.append(Block(offset, len(stored), size, digest(stored), self._coding != "raw"))
            if progress is not None:
                progress(size)
        self._entries[name] = Entry(name, dtype, tuple(whole.shape), tuple(blocks))

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Write the index, and the header in front of all."""
        index = write_index(Index(tuple(self._entries.values()), metadata))
        offset = self._align()
        self._file.write(index)
        self._file.seek(0)
        self._file.write(write_header(offset, index))

    def _align(self) -> int:
        """Fill with zeros up to where a block may begin."""
        at = self._file.tell()
        self._file.write(bytes(-at % ALIGNMENT))
        return self._file.tell()
