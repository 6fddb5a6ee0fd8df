"""The arrays of a call, brought where the program wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from lepton_jax._stage import kind_of


def as_global(leaf: Any, own: bool) -> jax.ShapeDtypeStruct:
    """The shape that the program sees of an array.

    Args:
        own: whether each process gives its own part of dimension 0. An array over several processes is whole.

    Raises:
        ValueError: it has no dimension 0.
    """
    shape, dtype, weak_type = kind_of(leaf)
    if own and not _is_whole(leaf):
        if not shape:
            raise ValueError("local: a scalar has no dimension of which each process could give a part")
        shape = (shape[0] * jax.process_count(), *shape[1:])
    return jax.ShapeDtypeStruct(shape, dtype, weak_type=weak_type)


def place(
    leaves: Sequence[Any],
    shardings: Sequence[NamedSharding],
    local: Sequence[bool],
    placed: list[Any],
    paths: Sequence[str],
) -> list[Any]:
    """The arrays where the program wants them; those that lie elsewhere are moved.

    Host arrays and arrays that were put nowhere in particular are left to `jax.jit`; over several processes,
    which must all give the same, each device takes its part of them.

    Args:
        shardings: where they are wanted.
        local: of which each process gives its own part.
        placed: the sharding in which each was last found to lie right; kept from call to call.
        paths: what they are called.

    Raises:
        ValueError: the parts that the processes give are not those that their devices hold, or an array that
            should be the same in each process is not.
    """
    if not placed:
        placed += [None] * len(leaves)
    found = list(leaves)
    moving: list[int] = []
    many = jax.process_count() > 1
    for i, (leaf, wanted) in enumerate(zip(leaves, shardings, strict=True)):
        if local[i]:
            found[i] = _joined(leaf, wanted, paths[i])
        elif isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            lies = leaf.sharding
            if lies is placed[i] or not (leaf.committed or many):
                continue
            if lies == wanted or (_kind(lies) == _kind(wanted) and lies.is_equivalent_to(wanted, leaf.ndim)):
                placed[i] = lies
            else:
                moving.append(i)
        elif many and isinstance(leaf, np.ndarray) and not wanted.is_fully_replicated:
            moving.append(i)
    if many:
        for i in moving:
            found[i] = _sent(leaves[i], shardings[i], paths[i])
    elif moving:
        moved = jax.device_put([leaves[i] for i in moving], [shardings[i] for i in moving])
        for i, array in zip(moving, moved, strict=True):
            found[i] = array
    return found


def _sent(leaf: Any, wanted: NamedSharding, path: str) -> Any:
    """An array of one process, or a host array, on all devices; JAX looks whether processes have the same."""
    try:
        return jax.device_put(leaf, wanted)
    except AssertionError as error:
        raise ValueError(
            f"{path} is not the same in each process: an array of one process or of the host is the whole "
            f"array; where each has its own part of dimension 0, say lepton.Sharding(..., local={path!r})"
        ) from error


def _kind(sharding: Any) -> Any:
    """What JAX's types of axes make of a sharding."""
    return sharding.mesh.axis_types if isinstance(sharding, NamedSharding) else None


def _is_whole(leaf: Any) -> bool:
    """Whether an array is no process's part: it lies on several, or is traced."""
    return isinstance(leaf, jax.core.Tracer) or (
        isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    )


def _joined(leaf: Any, wanted: NamedSharding, path: str) -> Any:
    """The array of which each process gives its part; one that is whole already stays."""
    if _is_whole(leaf):
        return leaf
    part = np.asarray(leaf)
    shape = (part.shape[0] * jax.process_count(), *part.shape[1:])
    try:
        return jax.make_array_from_process_local_data(wanted, part, shape)
    except ValueError as error:
        raise ValueError(
            f"local: process {jax.process_index()} gives {part.shape} of {path} {shape} that lies as "
            f"{wanted.spec}: split its dimension 0 along axes that go over the processes, or give the whole "
            f"array in each process and leave {path!r} out of local ({error})"
        ) from error
