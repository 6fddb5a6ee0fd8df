"""Meshes over several slices or nodes: fast links within, slower ones between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from lepton_jax.parallel.meshes import MeshSpec, slice_of


def create_mesh(
    sizes: str | Mapping[str, int],
    *,
    outer: str | Mapping[str, int] | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh over one slice, or over several.

    Neighbours along an axis stand in one slice as far as they can: an axis of two slices with four devices
    each has the first slice's devices before the second's.

    Args:
        sizes: of the axes within one slice, as `data=2,model=4`.
        outer: how many slices there are along some of the axes, as `{"data": 2}`; an axis may be in both, its
            size is then the product. None: one slice.
        devices: default: all that JAX has. Slices are told apart as the devices say; where they do not say
            (CPU), each process is one, and in a single process the devices are cut in order.

    Returns:
        A mesh with axes of type `Auto`. Its axes are those of `sizes`, then those only in `outer`.

    Raises:
        ValueError: the devices are not as many as the mesh has, or stand in another number of slices.

    Example:
        >>> mesh = create_mesh("model=1", outer={"data": 1}, devices=jax.devices()[:1])
        >>> dict(mesh.shape)
        {'model': 1, 'data': 1}
    """
    within = _sizes(sizes)
    across = _sizes(outer) if outer else {}
    names = tuple(dict.fromkeys((*within, *across)))
    inner_shape = tuple(within.get(name, 1) for name in names)
    outer_shape = tuple(across.get(name, 1) for name in names)
    given = list(jax.devices() if devices is None else devices)
    needed = int(np.prod(inner_shape) * np.prod(outer_shape))
    if needed != len(given):
        slices = int(np.prod(outer_shape))
        raise ValueError(
            f"{slices} slice{'s' * (slices != 1)} of {int(np.prod(inner_shape))} devices are {needed}; there "
            f"are {len(given)}: change the sizes, or say which with devices="
        )
    types = (AxisType.Auto,) * len(names)
    return Mesh(_arranged(inner_shape, outer_shape, given), names, axis_types=types)


def _sizes(sizes: str | Mapping[str, int]) -> dict[str, int]:
    spec = MeshSpec.of(sizes, chip="cpu")
    return {axis.name: axis.size for axis in spec.axes}


def _arranged(inner: tuple[int, ...], outer: tuple[int, ...], devices: Sequence[Any]) -> Any:
    from jax.experimental import mesh_utils

    slices = int(np.prod(outer))
    if slices == 1:
        return mesh_utils.create_device_mesh(inner, devices=list(devices), allow_split_physical_axes=True)
    groups = slices_of(devices)
    if len(groups) == 1:
        blocks = np.asarray(devices, dtype=object).reshape(*outer, *inner)
        order = [
            axis
            for pair in zip(range(len(outer)), range(len(outer), 2 * len(outer)), strict=True)
            for axis in pair
        ]
        return blocks.transpose(order).reshape([o * i for o, i in zip(outer, inner, strict=True)])
    if len(groups) != slices:
        raise ValueError(f"the devices stand in {len(groups)} slices, outer= says {slices}")
    return mesh_utils.create_hybrid_device_mesh(
        inner,
        outer,
        devices=list(devices),
        process_is_granule=len({getattr(device, "slice_index", None) for device in devices}) == 1,
        allow_split_physical_axes=True,
    )


def _says_slice(devices: Sequence[Any]) -> bool:
    """Whether the devices say in which slices they stand, and these are several."""
    return len(set(map(slice_of, devices))) > 1


def slices_of(devices: Sequence[Any]) -> set[Any]:
    """The slices of devices: as they say, else on CPU the processes."""
    if _says_slice(devices):
        return set(map(slice_of, devices))
    return {device.process_index if device.platform == "cpu" else 0 for device in devices}


def outer_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes of a mesh along which neighbours stand in different slices or, on CPU, processes."""
    if isinstance(mesh, AbstractMesh):
        return ()
    says = _says_slice(list(mesh.devices.flat))
    where = np.vectorize(
        lambda d: slice_of(d) if says else d.process_index if d.platform == "cpu" else 0, otypes=[int]
    )(mesh.devices)
    return tuple(
        name for axis, name in enumerate(mesh.axis_names) if (where != where.take([0], axis=axis)).any()
    )
