"""Whether devices that should hold the same bits do.

Copies of a parameter drift apart where devices add up in another order, where one of them has a fault, or
where a step forgets a collective; training goes on and is wrong. Each device sums up the bits of what it
holds to two words, in one program for the whole tree; only these travel.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lepton_jax.ir.paths import leaf_paths

Words = np.ndarray[Any, np.dtype[np.uint32]]
_NARROW: Final = ("int2", "uint2", "int4", "uint4")
_SHOWN: Final = 8
_SALTS: Final = (0x9E3779B9, 0x85EBCA6B)


class ReplicaError(RuntimeError):
    """Devices that should hold the same bits do not."""


class _Leaf(NamedTuple):
    """An array on a mesh, by its path."""

    path: str
    array: jax.Array
    sharding: NamedSharding


def check_replicas(tree: Any, *, step: int | None = None, every: int = 1, name: str = "params") -> None:
    """Check that copies of arrays are equal bit by bit, on all devices of all processes.

    All processes call it with the same tree. Arrays on one device, and parts of which there is one, are not
    looked at. It reads every parameter once on the device that holds it, and sends eight bytes for each.

    Args:
        tree: of arrays on meshes, as parameters or an optimiser's state.
        step: the number of the step; None: check now.
        every: with a step, check only where this divides it.
        name: of the tree, for the message.

    Raises:
        ReplicaError: copies differ; the message names the first array in the order of the tree, the devices,
            and how they differ. In every process alike.
        ValueError: `every` is less than 1.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> w = jax.device_put(jnp.ones(4), NamedSharding(mesh, PartitionSpec()))
        >>> check_replicas({"w": w}, step=300, every=100)
    """
    if every < 1:
        raise ValueError(f"every is a number of steps, at least 1, not {every}")
    if step is not None and step % every:
        return
    paths, leaves = leaf_paths(name, tree), jax.tree.leaves(tree)
    meshes: dict[Mesh, list[int]] = defaultdict(list)
    found = {i: _on_mesh(path, leaf) for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True))}
    for i, leaf in found.items():
        if leaf is not None:
            meshes[leaf.sharding.mesh].append(i)  # type: ignore[index]
    wrong: dict[int, list[tuple[int, int]]] = {}
    for mesh, which in meshes.items():
        here = [leaf for i in which if (leaf := found[i]) is not None]
        words = _fingerprints(here, mesh)
        for at, i in enumerate(which):
            if pairs := _differing(words[:, at], here[at].sharding):
                wrong[i] = pairs
    if not wrong:
        return
    first = min(wrong)
    worst = found[first]
    assert worst is not None
    others = [paths[i] for i in sorted(wrong)[1:]]
    when = "" if step is None else f" at step {step}"
    raise ReplicaError(_described(worst, wrong[first], when) + _rest(others))


def _on_mesh(path: str, leaf: Any) -> _Leaf | None:
    """An array of which several devices of a mesh hold the same; None for all else."""
    if not isinstance(leaf, jax.Array) or not isinstance(leaf.sharding, NamedSharding) or not leaf.size:
        return None
    if not isinstance(leaf.sharding.mesh, Mesh) or not _copied(leaf.sharding):
        return None
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(leaf)
        return _on_mesh(path, data)
    return _Leaf(path, leaf, leaf.sharding)


def _copied(sharding: NamedSharding) -> tuple[str, ...]:
    """The axes along which devices hold copies."""
    used: set[str] = set()
    for entry in sharding.spec:
        used.update((entry,) if isinstance(entry, str) else (entry or ()))
    mesh = sharding.mesh
    return tuple(a for a in mesh.axis_names if a not in used and mesh.shape[a] > 1)


def _fingerprints(leaves: Sequence[_Leaf], mesh: Mesh) -> Words:
    """Two words for each device of the mesh, flat, and each array: uint32[devices, arrays, 2]."""
    axes = tuple(mesh.axis_names)

    def each(*parts: jax.Array) -> jax.Array:
        words = jnp.stack([_fingerprint(part) for part in parts])
        every: jax.Array = lax.all_gather(words, axes)
        return every

    specs = tuple(leaf.sharding.spec for leaf in leaves)
    run = jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return np.asarray(jax.jit(run)(*(leaf.array for leaf in leaves)))


def _bits(x: jax.Array) -> jax.Array:
    """The bits of each element: uint32[elements, words]."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.concatenate([_bits(x.real), _bits(x.imag)], 1)
    if x.dtype == bool or jnp.dtype(x.dtype).name in _NARROW:
        return x.reshape(-1, 1).astype(jnp.int32).astype(jnp.uint32)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits: jax.Array = lax.bitcast_convert_type(x, width).reshape(x.size, -1).astype(jnp.uint32)
    return bits


def _fingerprint(x: jax.Array) -> jax.Array:
    """Two sums of mixed bits, each word mixed with its place; uint32[2]."""
    bits = _bits(x).reshape(-1)
    place = lax.iota(jnp.uint32, bits.shape[0])
    words = []
    for salt in _SALTS:
        h = (bits ^ (place * jnp.uint32(salt))) * jnp.uint32(0xCC9E2D51)
        h = (h ^ (h >> 15)) * jnp.uint32(0x1B873593)
        words.append((h ^ (h >> 13)).sum(dtype=jnp.uint32))
    return jnp.stack(words)


def _groups(sharding: NamedSharding) -> list[list[int]]:
    """Devices, by their flat places in the mesh, that hold the same part."""
    mesh = sharding.mesh
    copied = _copied(sharding)
    places = np.arange(math.prod(mesh.axis_sizes)).reshape(mesh.axis_sizes)
    order = [i for i, a in enumerate(mesh.axis_names) if a not in copied]
    order += [i for i, a in enumerate(mesh.axis_names) if a in copied]
    count = math.prod(mesh.shape[a] for a in copied)
    groups: list[list[int]] = places.transpose(order).reshape(-1, count).tolist()
    return groups


def _differing(words: Words, sharding: NamedSharding) -> list[tuple[int, int]]:
    """Devices that differ from most of those that should hold the same, each with one of these."""
    pairs: list[tuple[int, int]] = []
    for group in _groups(sharding):
        counts = Counter(words[device].tobytes() for device in group)
        if len(counts) == 1:
            continue
        most, _ = counts.most_common(1)[0]
        good = next(device for device in group if words[device].tobytes() == most)
        pairs += [(device, good) for device in group if words[device].tobytes() != most]
    return sorted(pairs)


def _described(leaf: _Leaf, pairs: Sequence[tuple[int, int]], when: str) -> str:
    """What differs, of all devices that do: on every process the same."""
    mesh = leaf.sharding.mesh
    assert isinstance(mesh, Mesh)
    devices = mesh.devices.reshape(-1)
    shape = leaf.sharding.shard_shape(leaf.array.shape)
    found = _differences(leaf, pairs, mesh)
    lines = []
    for device, good in pairs[:_SHOWN]:
        count, first, largest = found[device]
        at = [int(i) for i in np.unravel_index(int(first), shape)]
        lines.append(
            f"  {_called(devices[device])} differs from {_called(devices[good])} in {count} of "
            f"{math.prod(shape)} elements, the first at {at} of its part, by at most "
            f"{largest.view(np.float32):.3g}"
        )
    if len(pairs) > _SHOWN:
        lines.append(f"  and {len(pairs) - _SHOWN} more devices")
    kind = f"{leaf.array.dtype}{list(leaf.array.shape)}"
    return f"copies of {leaf.path} ({kind}) differ{when}:\n" + "\n".join(lines)


def _called(device: Any) -> str:
    return f"device {device.id} (process {device.process_index})"


def _rest(paths: Sequence[str]) -> str:
    if not paths:
        return ""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"\nso do copies of {', '.join(paths[:_SHOWN])}{more}"


def _differences(leaf: _Leaf, pairs: Sequence[tuple[int, int]], mesh: Mesh) -> Any:
    """For each device how many elements differ from its neighbour's, the first, and the bits of by how much.

    int32[devices, 3].
    """
    copied, axes = _copied(leaf.sharding), tuple(mesh.axis_names)
    chosen = np.zeros((mesh.devices.size,), np.int32)  # of each group the one whose values count
    for group in _groups(leaf.sharding):
        chosen[group] = group.index(next((good for device, good in pairs if device in group), group[0]))

    def each(part: jax.Array) -> jax.Array:
        counts = lax.axis_index(copied) == jnp.asarray(chosen)[lax.axis_index(axes)]
        bits, values = _bits(part), _floats(part)
        right = lax.psum(jnp.where(counts, bits, 0), copied)
        there = lax.psum(jnp.where(counts, values, 0), copied)
        differs = (bits != right).any(1)
        off = jnp.where(differs, jnp.abs(values - there), 0.0).max(initial=0.0)
        found = [differs.sum(dtype=jnp.int32), jnp.argmax(differs), lax.bitcast_convert_type(off, jnp.int32)]
        every: jax.Array = lax.all_gather(jnp.stack([each.astype(jnp.int32) for each in found]), axes)
        return every

    spec = leaf.sharding.spec
    run = jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False)
    return np.asarray(jax.jit(run)(leaf.array))


def _floats(x: jax.Array) -> jax.Array:
    """The elements as a vector of float32; of complex ones the magnitudes."""
    x = jnp.abs(x) if jnp.issubdtype(x.dtype, jnp.complexfloating) else x
    return x.astype(jnp.float32).reshape(-1)
