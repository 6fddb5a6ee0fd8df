"""What a user says about a mesh: the arguments of `optimize`, checked and in hashable form."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from lepton_jax._sharded.sharding import Sharding

if TYPE_CHECKING:
    from lepton_jax.parallel.aot.topologies import Topology
    from lepton_jax.parallel.meshes import AnyMesh

OPEN: Final = "auto"


@dataclass(frozen=True)
class OpenMesh:
    """Devices of which a mesh is made when the program is known.

    Attributes:
        count: how many of JAX's devices, the first ones; None for all.
        topology: devices to compile for, in place of JAX's.
    """

    count: int | None = None
    topology: Topology | None = None

    @property
    def devices(self) -> tuple[Any, ...]:
        """The devices.

        Raises:
            ValueError: JAX has not so many.
        """
        if self.topology is not None:
            return self.topology.devices
        devices = tuple(jax.devices())
        if self.count is not None and self.count > len(devices):
            raise _too_few(f"mesh={self.count}", self.count, devices)
        return devices[: self.count]

    @property
    def slices(self) -> int:
        """How many slices or nodes the devices stand in."""
        from lepton_jax.parallel.multislice import slices_of

        return self.topology.slices if self.topology is not None else len(slices_of(self.devices))

    def mesh(self, sizes: Mapping[str, int], outer: Sequence[str]) -> Mesh:
        """A mesh of all the devices.

        Args:
            sizes: of its axes; the one in `outer`, if any, is the first.
            outer: the axis that goes from one slice to the next.
        """
        from lepton_jax.parallel.multislice import create_mesh

        if self.topology is not None:
            return self.topology.mesh(sizes)
        within = {name: size for name, size in sizes.items() if name not in outer}
        across = {name: size for name, size in sizes.items() if name in outer}
        found = create_mesh(within, outer=across, devices=self.devices)
        axes = [found.axis_names.index(name) for name in sizes]
        return Mesh(found.devices.transpose(axes), tuple(sizes), axis_types=found.axis_types)


@dataclass(frozen=True)
class Spread:
    """The arguments of `optimize` that concern a mesh.

    Attributes:
        mesh: JAX's, or in words as `data=2,model=4`, or devices alone.
        sharding: how arguments shall lie on it.
        donate: `auto` to donate what comes back; None to donate what the user names.
        memory: bytes that each device has for the program; None for what its chip has.
        microbatches: in how many parts the batch is computed; `auto` for as many as the memory demands; None
            for that where the layouts are solved for and the user says how much memory there is.
    """

    mesh: AnyMesh | str | OpenMesh
    sharding: Sharding
    donate: str | None = None
    memory: int | None = None
    microbatches: int | str | None = None

    def get_mesh(self) -> AnyMesh:
        """JAX's mesh, made of the first devices where the user gave words.

        Raises:
            ValueError: it needs more devices than there are, or its axes are found with a program.
        """
        if isinstance(self.mesh, OpenMesh):
            raise ValueError("mesh='auto' is found for a function that is called: here give the mesh's axes")
        if not isinstance(self.mesh, str):
            return self.mesh
        from lepton_jax.parallel.meshes import MeshSpec

        spec = MeshSpec.of(self.mesh, chip="cpu")
        devices = jax.devices()
        if spec.devices > len(devices):
            raise _too_few(f"the mesh {spec}", spec.devices, devices)
        sizes = tuple(axis.size for axis in spec.axes)
        types = (AxisType.Auto,) * len(sizes)
        return jax.make_mesh(sizes, spec.names, axis_types=types, devices=devices[: spec.devices])


def _too_few(what: str, count: int, devices: Sequence[Any]) -> ValueError:
    return ValueError(
        f"{what} needs {count} devices, JAX has {len(devices)} ({devices[0].platform}). To plan without them "
        "give a jax.sharding.AbstractMesh; to try it on CPU set "
        f"XLA_FLAGS=--xla_force_host_platform_device_count={count} before JAX starts"
    )


def make_spread(
    mesh: Any,
    shard: Any,
    donate: str | None,
    memory: int | str | None,
    donated: bool,
    microbatches: int | str | None = None,
) -> Spread | None:
    """Check what `optimize` was told about a mesh.

    Args:
        donated: whether the user names arguments to donate.

    Returns:
        None where nothing was said.

    Raises:
        TypeError: the mesh or the sharding is nothing of the kind.
        ValueError: shard, donate or memory without a mesh, or a value that they cannot have.
    """
    if mesh is None:
        given = {"shard": shard, "donate": donate, "memory": memory}
        named = [f"{name}={value!r}" for name, value in given.items() if value is not None]
        if named:
            raise ValueError(f"{', '.join(named)} needs a mesh: optimize(f, mesh='data=8', ...)")
        return None
    if donate not in (None, "auto"):
        raise ValueError(f"donate is 'auto' or None, not {donate!r}; donate_argnums names arguments")
    if donate and donated:
        raise ValueError("donate='auto' finds what to donate: leave out donate_argnums and donate_argnames")
    if not _is_count(microbatches):
        raise ValueError(
            f"microbatches is a number of parts, 'auto' for as many as the memory demands, or None, not "
            f"{microbatches!r}"
        )
    return Spread(_mesh(mesh), Sharding.of(shard), donate, _memory_in_bytes(memory), microbatches)


def _is_count(microbatches: Any) -> bool:
    if isinstance(microbatches, int) and not isinstance(microbatches, bool):
        return microbatches >= 1
    return microbatches in (None, "auto")


def _mesh(mesh: Any) -> AnyMesh | str | OpenMesh:
    if mesh == OPEN if isinstance(mesh, str) else isinstance(mesh, OpenMesh):
        return OpenMesh() if isinstance(mesh, str) else mesh
    if isinstance(mesh, int) and not isinstance(mesh, bool):
        if mesh < 1:
            raise ValueError(f"a mesh has at least one device, not {mesh}")
        return OpenMesh(mesh)
    if isinstance(mesh, (Mesh, AbstractMesh)):
        if not mesh.axis_names:
            raise ValueError("the mesh has no axes")
        return mesh
    if not isinstance(mesh, (str, Mapping)):
        raise TypeError(
            "mesh is a jax.sharding.Mesh, an AbstractMesh, sizes as 'data=2,model=4', a number of devices, "
            f"or 'auto', not {mesh!r}"
        )
    from lepton_jax.parallel.meshes import MeshSpec

    return str(MeshSpec.of(mesh, chip="cpu"))


_DECIMAL: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS: Final = {**_DECIMAL, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def _memory_in_bytes(memory: int | str | None) -> int | None:
    """Bytes, from a number or from words as `14GB` (powers of 1000) and `14GiB` (of 1024)."""
    if memory is None:
        return None
    size: Any = memory
    if isinstance(memory, str):
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kmgt]?i?)b?", memory.strip().lower())
        size = float(found[1]) * _UNITS[found[2]] if found and found[2] in _UNITS else None
    if isinstance(size, bool) or not isinstance(size, (int, float)) or not 1 <= size < math.inf:
        raise ValueError(f"memory is a number of bytes, 1 or more, or as '14GB', not {memory!r}")
    return int(size)
