"""A mesh as planning sees it: named axes, their sizes, and what connects the devices along each."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from lepton_jax.ir import _jax
from lepton_jax.targets.chips import Chip, Link, get_chip

AnyMesh = Mesh | AbstractMesh


@dataclass(frozen=True, slots=True)
class MeshAxis:
    """One axis of a mesh.

    Attributes:
        name: as the user calls it.
        size: how many devices stand along it.
        link: what connects neighbours along it.
        wraps: whether the last is connected with the first.
    """

    name: str
    size: int
    link: Link
    wraps: bool = False


@dataclass(frozen=True, slots=True)
class MeshSpec:
    """The axes of a mesh, in order, and the chip it is made of.

    Example:
        >>> mesh = MeshSpec.of("data=2,model=4", chip="v5e")
        >>> mesh.size("model"), mesh.devices, str(mesh)
        (4, 8, 'data=2,model=4')
    """

    axes: tuple[MeshAxis, ...]
    chip: Chip

    @classmethod
    def of(
        cls,
        mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | Mapping[str, int] | str,
        chip: str | None = None,
        outer: Collection[str] = (),
    ) -> MeshSpec:
        """What planning needs to know of a mesh.

        Args:
            mesh: JAX's, or the sizes of its axes by name, or these as text: `data=2,model=4`.
            chip: what it is made of; default: by the devices of the mesh, else of JAX's default backend.
            outer: the axes along which devices stand in different slices or nodes; of a `Mesh` its devices
                tell.

        Raises:
            ValueError: an axis without a name or with a size below 1, an unknown chip, or an unknown axis
                in `outer`.
        """
        sizes = _sizes(mesh)
        outer = outer or _between_slices(mesh)
        for name, size in sizes.items():
            if not name or size < 1:
                raise ValueError(f"a mesh's axes have names and sizes of at least 1, not {name!r}={size}")
        for name in outer:
            if name not in sizes:
                raise ValueError(f"{name!r} is not an axis of the mesh; its axes are {', '.join(sizes)}")
        made_of = get_chip(chip if chip is not None else _chip_name(mesh))
        axes = tuple(
            MeshAxis(
                name,
                size,
                made_of.outer if name in outer else made_of.inner,
                name not in outer and made_of.wraps_at > 0 and size % made_of.wraps_at == 0,
            )
            for name, size in sizes.items()
        )
        return cls(axes, made_of)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the axes, in order."""
        return tuple(axis.name for axis in self.axes)

    @property
    def devices(self) -> int:
        """How many devices it has."""
        return math.prod(axis.size for axis in self.axes)

    def axis(self, name: str) -> MeshAxis:
        """The axis called `name`.

        Raises:
            ValueError: there is none; the message lists those there are.
        """
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise ValueError(f"{name!r} is not an axis of the mesh; its axes are {', '.join(self.names)}")

    def size(self, *names: str) -> int:
        """How many devices stand along these axes together; 1 for none."""
        return math.prod(self.axis(name).size for name in names)

    def __str__(self) -> str:
        return ",".join(f"{axis.name}={axis.size}" for axis in self.axes)


def _sizes(mesh: Any) -> dict[str, int]:
    if isinstance(mesh, str):
        found: dict[str, int] = {}
        for part in mesh.split(","):
            name, sign, size = (each.strip() for each in part.partition("="))
            if name in found:
                raise ValueError(f"the mesh {mesh!r} names the axis {name!r} twice")
            if not sign or not size.isdecimal():
                raise ValueError(f"a mesh in words is as 'data=2,model=4', not {mesh!r}")
            found[name] = int(size)
        return found
    if isinstance(mesh, Mapping):
        return {str(name): int(size) for name, size in mesh.items()}
    return {str(name): int(size) for name, size in mesh.shape.items()}


def slice_of(device: Any) -> int:
    """The slice of TPUs, or the node of GPUs, in which a device stands; 0 where it does not say.

    GPUs that are not there say none, other than those that are: their node is their process.
    """
    if device.platform == "gpu" and _jax.is_absent(device):
        return int(device.process_index)
    return getattr(device, "slice_index", 0) or 0


def _between_slices(mesh: Any) -> list[str]:
    """The axes of a mesh along which its devices stand in different slices."""
    if not isinstance(mesh, jax.sharding.Mesh):
        return []
    slices = np.array([slice_of(device) for device in mesh.devices.flat])
    slices = slices.reshape(mesh.devices.shape)
    differ = [(slices != slices.take([0], axis)).any() for axis in range(slices.ndim)]
    return [str(name) for name, each in zip(mesh.axis_names, differ, strict=True) if each]


_KINDS: Mapping[str, str] = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def _chip_name(mesh: Any) -> str:
    """The chip of a mesh's devices; one like it where Lepton does not know this one."""
    device = mesh.devices.flat[0] if isinstance(mesh, jax.sharding.Mesh) else jax.devices()[0]
    if device.platform == "tpu":
        return _KINDS.get(device.device_kind, "v5e")
    if device.platform == "cpu":
        return "cpu"
    return "h200" if "H200" in device.device_kind else "h100"


def automatic(mesh: AnyMesh) -> AnyMesh:
    """The mesh with axes over which XLA decides; JAX's own types of axes may say otherwise."""
    if not isinstance(mesh, Mesh):
        return automatic_axes(mesh)
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return mesh if mesh.axis_types == types else Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def automatic_axes(mesh: AbstractMesh) -> AbstractMesh:
    """`automatic` of an abstract mesh."""
    types = dict.fromkeys(mesh.axis_names, AxisType.Auto)
    found: AbstractMesh = mesh.update_axis_types(types)
    return found
