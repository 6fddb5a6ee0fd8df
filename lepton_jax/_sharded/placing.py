"""The arrays of a call, brought where the program wants them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from lepton_jax._stage import kind_of
from lepton_jax.ir import _jax

Rows = Mapping[int, tuple[tuple[Fraction, Fraction], ...]]
"""For each process which rows of an array it has: from where to where, in shares of all."""


def as_global(leaf: Any, own: bool, parts: int) -> jax.ShapeDtypeStruct:
    """The shape that the program sees of an array.

    Args:
        own: whether each process gives its own part of dimension 0. An array over several processes is whole.
        parts: how many processes there are.

    Raises:
        ValueError: it has no dimension 0.
    """
    shape, dtype, weak_type = kind_of(leaf)
    if own and not _is_whole(leaf):
        if not shape:
            raise ValueError("local: a scalar has no dimension of which each process could give a part")
        shape = (shape[0] * parts, *shape[1:])
    return jax.ShapeDtypeStruct(shape, dtype, weak_type=weak_type)


def place(
    leaves: Sequence[Any],
    shardings: Sequence[NamedSharding],
    local: Sequence[bool],
    parts: int,
    placed: list[Any],
    paths: Sequence[str],
) -> list[Any]:
    """The arrays where the program wants them; those that lie elsewhere are moved.

    Arrays that were put nowhere in particular are left to `jax.jit`, and host arrays too, unless they are
    split in a program of several processes: these all give the same, and each device takes its part. No
    process asks another here.

    Args:
        shardings: where they are wanted.
        local: of which each process gives its own part.
        parts: how many processes there are.
        placed: the sharding in which each was last found to lie right; kept from call to call.
        paths: what they are called.

    Raises:
        ValueError: the parts that the processes give are not those that their devices hold.
    """
    found = list(leaves)
    moving = misplaced(leaves, shardings, placed)
    own = {i for i, each in enumerate(local) if each and not _is_whole(leaves[i])}
    for i in own:
        found[i] = _joined(leaves[i], shardings[i], parts, paths[i])
    moving = [i for i in moving if i not in own]
    if moving and shardings[0].is_fully_addressable:
        moved = jax.device_put([leaves[i] for i in moving], [shardings[i] for i in moving])
        for i, array in zip(moving, moved, strict=True):
            found[i] = array
    else:
        for i in moving:
            found[i] = sent(leaves[i], shardings[i])
    return found


def misplaced(leaves: Sequence[Any], shardings: Sequence[NamedSharding], placed: list[Any]) -> list[int]:
    """The positions of arrays that are not where they are wanted, and that `jax.jit` would not bring there.

    Args:
        placed: see `place`.
    """
    if not placed:
        placed += [None] * len(leaves)
    many = jax.process_count() > 1  # then `jax.jit` splits no host array
    moving: list[int] = []
    for i, (leaf, wanted) in enumerate(zip(leaves, shardings, strict=True)):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            lies = leaf.sharding
            if lies is placed[i] or not leaf.committed:
                continue
            if lies == wanted or (_kind(lies) == _kind(wanted) and lies.is_equivalent_to(wanted, leaf.ndim)):
                placed[i] = lies
            else:
                moving.append(i)
        elif many and isinstance(leaf, np.ndarray) and not wanted.is_fully_replicated:
            moving.append(i)
    return moving


def sent(leaf: Any, wanted: NamedSharding) -> Any:
    """An array on the devices of a mesh; of one of this process, or of the host, each takes its part.

    Every process has the same, which `agree` has compared once: `jax.device_put` would gather it from all
    processes at every call. An array that lies on several processes is moved, unless it lies so.
    """
    if _is_whole(leaf) or wanted.is_fully_addressable:
        return jax.device_put(leaf, wanted)
    _, dtype, weak_type = kind_of(leaf)
    if weak_type:
        return jax.jit(_same, in_shardings=wanted, out_shardings=wanted)(leaf)
    keys = _jax.is_extended(dtype)
    host = np.asarray(jax.random.key_data(leaf)) if keys else np.asarray(leaf, dtype)
    array = jax.make_array_from_callback(
        host.shape, wanted, lambda index: np.asarray(host[index]), dtype=host.dtype
    )
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if keys else array


def _same(x: Any) -> Any:
    return x


def _kind(sharding: Any) -> Any:
    """What JAX's types of axes make of a sharding."""
    return sharding.mesh.axis_types if isinstance(sharding, NamedSharding) else None


def _is_whole(leaf: Any) -> bool:
    """Whether an array is no process's part: it lies on several, or is traced."""
    return isinstance(leaf, jax.core.Tracer) or (
        isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    )


def _joined(leaf: Any, wanted: NamedSharding, parts: int, path: str) -> Any:
    """The array of which each process gives its part."""
    part = np.asarray(leaf)
    shape = (part.shape[0] * parts, *part.shape[1:])
    try:
        return jax.make_array_from_process_local_data(wanted, part, shape)
    except ValueError as error:
        raise ValueError(
            f"local: process {jax.process_index()} gives {part.shape} of {path} {shape} that lies as "
            f"{wanted.spec}: split its dimension 0 along axes that go over the processes, or give the whole "
            f"array in each process and leave {path!r} out of local ({error})"
        ) from error


def check_parts(
    leaves: Sequence[Any],
    shardings: Sequence[NamedSharding],
    local: Sequence[bool],
    parts: int,
    paths: Sequence[str],
) -> None:
    """Check that the rows of all arrays of which each process gives its part come in the same order.

    Two arrays that are split along axes in another order would have the examples of one process beside the
    labels of another.

    Raises:
        ValueError: they do not; the message names two.
    """
    first: tuple[str, NamedSharding, Rows] | None = None
    for leaf, wanted, own, path in zip(leaves, shardings, local, paths, strict=True):
        shape = kind_of(leaf)[0]
        if not own or _is_whole(leaf) or not shape[0]:
            continue
        rows = _rows(wanted, (shape[0] * parts, *shape[1:]))
        if any(sum(stop - start for start, stop in runs) * parts != 1 for runs in rows.values()):
            continue  # not split over the processes, as `place` says
        if first is None:
            first = path, wanted, rows
        elif rows != first[2]:
            raise ValueError(
                f"local: {first[0]} lies as {first[1].spec} and {path} as {wanted.spec}, so the rows of a "
                "process would not stand at the same places in both: split dimension 0 of both along the "
                "same axes, those that go over the processes first"
            )


def _rows(wanted: NamedSharding, shape: tuple[int, ...]) -> Rows:
    found: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
    places: Mapping[Any, Any] = wanted.devices_indices_map(shape)
    for device, index in places.items():
        start, stop, _ = index[0].indices(shape[0])
        found[device.process_index].add((start, stop))
    joined: dict[int, tuple[tuple[Fraction, Fraction], ...]] = {}
    for process, pieces in found.items():
        runs: list[list[int]] = []
        for start, stop in sorted(pieces):
            if runs and runs[-1][1] == start:
                runs[-1][1] = stop
            else:
                runs.append([start, stop])
        joined[process] = tuple((Fraction(a, shape[0]), Fraction(b, shape[0])) for a, b in runs)
    return joined
