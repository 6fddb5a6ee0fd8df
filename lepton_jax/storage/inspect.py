"""What is in a `.lepton` file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_jax.storage._keys import key_data
from lepton_jax.storage.blocks import as_bytes
from lepton_jax.storage.coders import describe_block
from lepton_jax.storage.coders._table import entropy, histogram
from lepton_jax.storage.reader import Reader


@dataclass(frozen=True)
class ArraySummary:
    """An array of a file.

    Attributes:
        name: of the array.
        dtype: of the array.
        shape: of the array.
        nbytes: in memory.
        stored: bytes in the file.
        coders: that made its blocks.
        entropy: the order-0 entropy of its bytes, as a part of `nbytes`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    stored: int
    coders: tuple[str, ...]
    entropy: float


@dataclass(frozen=True)
class Contents:
    """What is in a file; print it.

    Attributes:
        arrays: in the order they were written; all were read and are whole.
        metadata: the names of what was said of the whole.
        length: of the file, bytes.
    """

    arrays: tuple[ArraySummary, ...]
    metadata: tuple[str, ...]
    length: int

    def __str__(self) -> str:
        head = ("array", "dtype", "shape", "bytes", "stored", "ratio", "entropy", "coder")
        rows = [head, *(_row(each) for each in self.arrays)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        total = sum(each.nbytes for each in self.arrays)
        share = f"{total / self.length:.3f}×"
        lines.append(f"{len(self.arrays)} arrays, {total:,} bytes in a file of {self.length:,} ({share})")
        lines.append(f"metadata: {', '.join(map(printable, self.metadata)) or 'none'}")
        lines.append("every block was read: all hashes are right")
        return "\n".join(line.rstrip() for line in lines)


def printable(name: str) -> str:
    """A name with its control characters written out, so that it cannot move the cursor."""
    return name if name.isprintable() else repr(name)[1:-1]


def _bytes_of(array: Any) -> NDArray[np.uint8]:
    keys = key_data(array)
    return as_bytes(np.asarray(array if keys is None else keys[0]))


def _row(each: ArraySummary) -> tuple[str, ...]:
    return (
        printable(each.name),
        each.dtype,
        "×".join(map(str, each.shape)) or "-",
        f"{each.nbytes:,}",
        f"{each.stored:,}",
        f"{each.nbytes / max(each.stored, 1):.3f}×",
        f"{1 / each.entropy:.3f}×" if each.entropy else "-",
        ", ".join(each.coders) or "none",
    )


def inspect(path: str | os.PathLike[str]) -> Contents:
    """What is in a file, every block of it read and checked.

    Raises:
        LeptonFileError: the file is damaged; what is damaged is named.
        OSError: it cannot be read.
    """
    found = []
    with Reader(path) as file:
        for name, entry in file.entries.items():
            counts = histogram(_bytes_of(file.read(name)))
            coders = tuple(sorted({describe_block(code) for code in file.blocks(name)}))
            found.append(
                ArraySummary(
                    name, entry.dtype, entry.shape, entry.nbytes, entry.stored, coders, entropy(counts)
                )
            )
        return Contents(tuple(found), tuple(file.metadata), os.path.getsize(path))
