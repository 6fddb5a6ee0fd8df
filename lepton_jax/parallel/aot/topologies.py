"""Devices that are not there: TPU pods, GPU nodes, and this machine's CPU as a mesh.

A topology has a name: `v5p:8x8x8` (chips along each dimension of a TPU slice), `v5e:4x4x2slices` (two
slices of 4×4), `h100:2x8` (nodes × GPUs), `cpu:8`. TPUs need libtpu (the extra `tpu`), GPUs JAX's CUDA
plug-in; neither needs the hardware. Nothing here is run on these devices: programs are compiled for them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import jax
import numpy as np
from jax.experimental import topologies

from lepton_jax.parallel.aot._targets import GPU_TARGETS
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.targets.chips import CHIPS, Chip, get_chip

Platform = Literal["cpu", "gpu", "tpu"]

_NAME: Final = re.compile(r"([\w\-]+):(\d+(?:x\d+)*?)(?:x(\d+)slices?)?")
_TPUS: Final = tuple(name for name, chip in CHIPS.items() if chip.inner.kind == "ici")
EXAMPLES: Final = (
    "v5e:2x4",
    "v5e:16x16",
    "v5e:4x4x2slices",
    "v5p:4x4x4",
    "v5p:8x8x8",
    "v6e:16x16",
    "v4:4x4x4",
    "h100:1x8",
    "cpu:8",
)

_ENVIRONMENT: Final[Mapping[str, str]] = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask a metadata server that is not there
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any; it is not used for topologies, but asked for
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else one process at a time
}


class TopologyError(ValueError):
    """There is no such topology, or what is needed to compile for it is not installed."""


@dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: as it was asked for.
        platform: cpu, gpu or tpu.
        chip: what each device is.
        devices: JAX's devices; only those of the CPU can run anything.
        slices: how many slices, or nodes, they stand in.
    """

    name: str
    platform: Platform
    chip: Chip
    devices: tuple[Any, ...]
    slices: int = 1

    def spec(self, axes: Mapping[str, int] | str | None = None) -> MeshSpec:
        """A mesh of all its devices, as planning sees it.

        Args:
            axes: sizes by name, or as `"data=2,model=4"`; one may be -1 or missing: `"data,model=4"`.
                Default: all along `data`, with `slice` before it where there are several slices.

        Raises:
            ValueError: the sizes do not multiply to the number of devices, or no axis goes over the slices.
        """
        sizes = _sizes(axes, len(self.devices), self.slices)
        return MeshSpec.of(sizes, chip=self.chip.name, outer=_outer(sizes, self.slices, self.name))

    def mesh(self, axes: Mapping[str, int] | str | None = None) -> jax.sharding.Mesh:
        """The same as JAX's mesh, with neighbours in the mesh on neighbouring chips where that can be.

        Raises:
            ValueError: as `spec`.
        """
        spec = self.spec(axes)
        return jax.sharding.Mesh(_placed(self, spec), spec.names)


def get_topology(name: str) -> Topology:
    """The topology called `name`.

    Raises:
        TopologyError: there is no such topology, or libtpu, the CUDA plug-in or enough virtual devices are
            missing; the message says what to install or to set.

    Example:
        >>> get_topology("v7:2x2")
        Traceback (most recent call last):
        ...
        lepton_jax.parallel.aot.topologies.TopologyError: no chip is called 'v7'; ...
    """
    found = _NAME.fullmatch(name.strip())
    if found is None:
        raise TopologyError(f"a topology is written as one of {', '.join(EXAMPLES)}, not {name!r}")
    chip, layout, slices = found[1], tuple(map(int, found[2].split("x"))), int(found[3] or 1)
    if chip not in CHIPS:
        raise TopologyError(
            f"no chip is called {chip!r}; there are {', '.join(CHIPS)}: for example {', '.join(EXAMPLES)}"
        )
    if min(*layout, slices) < 1:
        raise TopologyError(f"{name!r} has no devices")
    if chip == "cpu":
        return _cpu(name, layout, slices)
    return _tpu(name, chip, layout, slices) if chip in _TPUS else _gpu(name, chip, layout, slices)


def why_not(name: str) -> str:
    """Why a topology cannot be compiled for here; empty where it can."""
    try:
        get_topology(name)
    except TopologyError as error:
        return str(error)
    return ""


def _cpu(name: str, layout: tuple[int, ...], slices: int) -> Topology:
    count = int(np.prod(layout)) * slices
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise TopologyError(
            f"{name} needs {count} CPU devices and this process has {len(devices)}: set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={count} before JAX starts"
        )
    return Topology(name, "cpu", get_chip("cpu"), tuple(devices[:count]), slices)


def prepare_environment() -> None:
    """Tell libtpu, before it is loaded, that no TPU is here; the user's settings and real TPUs stay."""
    if any(Path("/dev").glob("accel*")) or any(Path("/dev").glob("vfio/[0-9]*")):
        return
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)


@functools.lru_cache(maxsize=16)
def _tpu(name: str, chip: str, layout: tuple[int, ...], slices: int) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(f"compiling for {name} needs the TPU compiler: pip install 'lepton-jax[tpu]'")
    prepare_environment()
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if chip == "v4":
        options["chip_config_name"] = "megacore"  # the two cores of a chip as one device
    if int(np.prod(layout)) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    text = f"{chip}:{'x'.join(map(str, layout))}"
    try:
        found = topologies.get_topology_desc(text, "tpu", **options)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise TopologyError(
            f"libtpu knows no topology {text!r} ({reason}); for example {', '.join(EXAMPLES)}"
        ) from error
    return Topology(name, "tpu", get_chip(chip), tuple(found.devices), slices)


@functools.lru_cache(maxsize=16)
def _gpu(name: str, chip: str, layout: tuple[int, ...], slices: int) -> Topology:
    if not any(_installed(f"jax_plugins.xla_cuda{version}") for version in (12, 13)):
        raise TopologyError(
            f"compiling for {name} needs JAX's CUDA plug-in, no GPU: pip install 'lepton-jax[cuda-aot]'"
        )
    if len(layout) > 2:
        raise TopologyError(f"GPUs are nodes × GPUs, as 'h100:2x8', not {name!r}")
    nodes, gpus = (1, *layout)[-2:]
    shape = f"{slices}x{nodes}x{gpus}"
    try:
        found = topologies.get_topology_desc("", "cuda", topology=shape, target_config=GPU_TARGETS[chip])
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TopologyError(
            f"JAX's CUDA plug-in gives no topology {name!r} ({reason}); where there is no GPU, set "
            "JAX_PLATFORMS=cpu"
        ) from error
    return Topology(name, "gpu", get_chip(chip), tuple(found.devices), slices * nodes)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _sizes(axes: Mapping[str, int] | str | None, count: int, slices: int) -> dict[str, int]:
    """The sizes of a mesh's axes, what is left open filled in."""
    if axes is None:
        return {"slice": slices, "data": count // slices} if slices > 1 else {"data": count}
    given = _open_sizes(axes) if isinstance(axes, str) else {name: int(size) for name, size in axes.items()}
    unknown = [name for name, size in given.items() if size == -1]
    known = int(np.prod([size for size in given.values() if size != -1]))
    if len(unknown) == 1 and count % known == 0:
        given[unknown[0]] = count // known
    if int(np.prod(list(given.values()))) != count:
        text = ",".join(f"{name}={size}" for name, size in given.items())
        raise ValueError(f"the mesh {text} does not hold {count} devices; its sizes must multiply to {count}")
    return given


def _open_sizes(axes: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in axes.split(","):
        name, sign, size = (each.strip() for each in part.partition("="))
        if (
            not re.fullmatch(r"[\w.-]+", name)
            or (sign and not re.fullmatch(r"-1|\d+", size))
            or name in found
        ):
            raise ValueError(f"a mesh in words is as 'data=2,model=4', not {axes!r}")
        found[name] = int(size) if sign else -1
    return found


def _outer(sizes: Mapping[str, int], slices: int, name: str) -> Sequence[str]:
    """The axis that goes over slices: the first of their number."""
    if slices == 1:
        return ()
    found = [axis for axis, size in sizes.items() if size == slices]
    if not found:
        raise ValueError(
            f"{name} has {slices} slices or nodes, and no axis of the mesh has that size: give it one, "
            f"as slice={slices}"
        )
    return found[:1]


def _placed(topology: Topology, spec: MeshSpec) -> np.ndarray:
    """The devices in the shape of a mesh."""
    shape = [axis.size for axis in spec.axes]
    devices = np.array(topology.devices, dtype=object)
    outer = _outer({axis.name: axis.size for axis in spec.axes}, topology.slices, topology.name)
    if outer:
        at = spec.names.index(outer[0])
        inner = [size for d, size in enumerate(shape) if d != at]
        return np.moveaxis(devices.reshape(topology.slices, *inner), 0, at)
    if topology.platform == "tpu":
        try:
            from jax.experimental import mesh_utils

            return np.asarray(mesh_utils.create_device_mesh(shape, list(devices)))
        except (NotImplementedError, ValueError, AssertionError):  # it does not fit on the torus
            pass
    return devices.reshape(shape)
