"""A file that takes the place of another only when it is whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, which is put in place at the end; if anything goes wrong, what was there stays.

    Args:
        path: of the file; what is there is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(_mode())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _mode() -> int:
    """What a new file may be used for, by this process's mask."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
