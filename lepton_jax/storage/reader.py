"""Reading a `.lepton` file, whole or array by array, nothing believed before it is checked."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from lepton_jax.storage._keys import as_keys, is_key
from lepton_jax.storage.coders import decode_block
from lepton_jax.storage.errors import LeptonFileError
from lepton_jax.storage.layout import HEADER, Block, Entry, digest, read_header, read_index, shaped

MOST_BYTES: Final = 1 << 40
"""So many bytes an array may take in memory, unless the reader is told otherwise."""


class Reader(Mapping[str, Any]):
    """The arrays of a file by name, read when they are asked for. A context that closes the file.

    Args:
        path: of the file.
        most_bytes: what all arrays may take in memory.
        workers: how many blocks are decoded at once; as many as there are processors if None.

    Raises:
        LeptonFileError: the file is damaged, of another kind, or larger than allowed. Blocks are checked
            when they are read, `check` reads them all.
        OSError: the file cannot be read.

    Attributes:
        entries: what is kept of each array, by name.
        metadata: what was said of the whole.

    Example:
        >>> import tempfile, pathlib
        >>> from lepton_jax.storage import writing
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "m.lepton"
        >>> with writing(path) as file:
        ...     file.add("w", np.ones((2, 3), np.float32))
        >>> with Reader(path) as file:
        ...     print(file["w"].sum(), file.entries["w"].shape)
        6.0 (2, 3)
    """

    def __init__(
        self, path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES, workers: int | None = None
    ) -> None:
        self.path = Path(path)
        self._workers = workers or os.cpu_count() or 1
        with self.path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            if not length:
                raise LeptonFileError("the file is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)
        try:
            offset, size, checked, self._version = read_header(bytes(self._view[: HEADER.size]), length)
            index = read_index(bytes(self._view[offset : offset + size]), checked, offset, self._version)
            total = sum(entry.nbytes for entry in index.entries)
            if total > most_bytes:
                raise LeptonFileError(
                    f"the arrays take {total:,} bytes, more than the {most_bytes:,} allowed"
                )
        except BaseException:
            self.close()
            raise
        self.entries: Mapping[str, Entry] = {entry.name: entry for entry in index.entries}
        self.metadata = index.metadata

    def __getitem__(self, name: str) -> Any:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, name: str, progress: Callable[[int], None] | None = None) -> Any:
        """An array of NumPy, or random keys of JAX.

        Args:
            name: of the array.
            progress: told of the bytes of each block that was read.

        Raises:
            KeyError: there is none of that name.
            LeptonFileError: it is damaged.
        """
        return self._arrays([self._entry(name)], progress)[0]

    def read_all(self, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
        """All arrays by name, with the blocks of several decoded side by side.

        Args:
            progress: told of the bytes of each block that was read.

        Raises:
            LeptonFileError: one is damaged; it is named.
        """
        return dict(zip(self.entries, self._arrays(list(self.entries.values()), progress), strict=True))

    def _arrays(self, entries: list[Entry], progress: Callable[[int], None] | None) -> list[Any]:
        wholes = [np.empty(entry.nbytes, np.uint8) for entry in entries]
        places = []
        for entry, whole in zip(entries, wholes, strict=True):
            start = 0
            for block in entry.blocks:
                places.append((entry, block, whole[start : start + block.size]))
                start += block.size

        def fill(place: tuple[Entry, Block, NDArray[np.uint8]]) -> int:
            entry, block, part = place
            part[:] = self._decoded(entry, block)
            return block.size

        def told(sizes: Iterable[int]) -> None:
            for size in sizes:
                if progress is not None:
                    progress(size)

        if len(places) < 2 or self._workers == 1:
            told(map(fill, places))
        else:
            with ThreadPoolExecutor(min(self._workers, len(places))) as pool:
                told(pool.map(fill, places))
        return [_array_of(entry, whole) for entry, whole in zip(entries, wholes, strict=True)]

    def mapped(self, name: str) -> NDArray[Any]:
        """An array that lies in the file as it is, without reading it: pages come in when they are used.

        Its bytes are not checked. It must not be used after the file is closed.

        Raises:
            KeyError: there is none of that name.
            LeptonFileError: it is coded: write the file with `coding="raw"`.
        """
        entry = self._entry(name)
        if any(block.coded for block in entry.blocks):
            raise LeptonFileError(f"{name!r} is coded and cannot be mapped: write the file with coding='raw'")
        if not entry.blocks:
            return shaped(np.empty(0, np.uint8), entry.dtype, entry.shape)
        if len(entry.blocks) > 1:
            raise LeptonFileError(f"{name!r} lies in several pieces and cannot be mapped")
        block = entry.blocks[0]
        found = np.frombuffer(self._map, np.uint8, block.size, block.offset)
        return shaped(found, entry.dtype, entry.shape)

    def blocks(self, name: str) -> list[memoryview]:
        """The codes of an array's blocks; none of an array that is kept as it is."""
        return [self._stored(block) for block in self._entry(name).blocks if block.coded]

    def check(self) -> None:
        """Read everything.

        Raises:
            LeptonFileError: an array is damaged; it is named.
        """
        for name in self:
            self._arrays([self._entry(name)], None)

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise KeyError(f"{name!r} is not among the arrays of {self.path.name}: {', '.join(self.entries)}")
        return self.entries[name]

    def _decoded(self, entry: Entry, block: Block) -> NDArray[np.uint8]:
        stored = self._stored(block)
        if digest(stored, self._version) != block.digest:
            raise LeptonFileError(f"{entry.name!r} is damaged: its bytes are not those that were written")
        if not block.coded:
            return np.frombuffer(stored, np.uint8)
        try:
            return decode_block(stored, block.size)
        except LeptonFileError as error:
            raise LeptonFileError(f"{entry.name!r} is damaged: {error}") from error

    def _stored(self, block: Block) -> memoryview:
        return self._view[block.offset : block.offset + block.stored]

    def close(self) -> None:
        """Close the file; arrays that were read stay."""
        self._view.release()
        with suppress(BufferError):  # a mapped array is still in use; it keeps the file open
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _array_of(entry: Entry, whole: NDArray[np.uint8]) -> Any:
    found = shaped(whole, entry.dtype, entry.shape)
    return as_keys(found, entry.dtype) if is_key(entry.dtype) else found
