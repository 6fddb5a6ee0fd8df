"""Other people's checkpoints as `.lepton` files, and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from lepton_jax.storage.errors import LeptonFileError
from lepton_jax.storage.reader import Reader
from lepton_jax.storage.safetensors import read_safetensors, write_safetensors
from lepton_jax.storage.writer import writing

Progress = Callable[[int, int], None]
"""Told how many bytes are done, and of how many."""

_HEADER: Final = "safetensors header"


def pack(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """A checkpoint as a `.lepton` file, without loss.

    Args:
        source: a file of safetensors, which `unpack` gives back bit by bit; or a folder that Orbax wrote.
        target: the file to write; if None, the name of the source with the ending `.lepton`.
        progress: told how many bytes are done, and of how many.

    Returns:
        The file that was written.

    Raises:
        LeptonFileError: the source is neither, or damaged.
        OSError: it cannot be read, or the target not written.
        ImportError: Orbax is not installed.
    """
    path = Path(source)
    goal = (
        path.with_name(f"{path.stem if path.suffix else path.name}.lepton")
        if target is None
        else Path(target)
    )
    metadata: dict[str, Any]
    if path.is_dir():
        arrays, metadata = read_orbax(path), {"kind": "arrays"}
    else:
        found = read_safetensors(path)
        arrays, metadata = dict(found.tensors), {"kind": "arrays", _HEADER: found.header.decode("latin-1")}
    told = _counter(sum(array.nbytes for array in arrays.values()), progress)
    with writing(goal, metadata) as file:
        for name, array in arrays.items():
            file.add(name, array, told)
    return goal


def unpack(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """The file of safetensors that was packed, bit by bit; of other `.lepton` files, their arrays.

    Args:
        source: a `.lepton` file.
        target: the file to write; if None, the name of the source with the ending `.safetensors`.
        progress: told how many bytes are done, and of how many.

    Returns:
        The file that was written.

    Raises:
        LeptonFileError: the source is damaged, or has arrays of dtypes that safetensors have not.
        OSError: it cannot be read, or the target not written.
    """
    path = Path(source)
    goal = path.with_suffix(".safetensors") if target is None else Path(target)
    with Reader(path) as file:
        told = _counter(sum(entry.nbytes for entry in file.entries.values()), progress)
        arrays = file.read_all(told)
        header = file.metadata.get(_HEADER)
    try:
        exact = None if header is None else header.encode("latin-1")
    except (AttributeError, UnicodeEncodeError) as error:
        raise LeptonFileError(f"{path.name} is damaged: its header of safetensors") from error
    write_safetensors(goal, arrays, exact)
    return goal


def read_orbax(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The arrays of a checkpoint that Orbax wrote, by their paths in the tree: `params/dense/kernel`.

    Raises:
        ImportError: Orbax is not installed.
        LeptonFileError: the folder holds no checkpoint.
    """
    import jax
    import orbax.checkpoint as orbax  # type: ignore[import-untyped]

    try:
        with orbax.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(Path(folder).absolute())
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise LeptonFileError(f"{folder} holds no checkpoint of Orbax: {error}") from error
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _counter(total: int, progress: Progress | None) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def told(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    return told
