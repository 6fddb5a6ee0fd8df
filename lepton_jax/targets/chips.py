"""The chips that meshes are made of: their rates, their memory, and the links between them.

Data sheets and the published figures of "How to Scale Your Model" (Austin et al., 2025, chapter 2) for TPUs,
NVIDIA's data sheets for GPUs. Links are given one way, from one device to its neighbour. None of it was
measured here; only ratios decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from lepton_jax.targets.rates import CPU, GPU, TPU, Target

LinkKind = Literal["ici", "dcn", "nvlink", "infiniband", "memory"]


@dataclass(frozen=True, slots=True)
class Link:
    """What connects the devices along one axis of a mesh.

    Attributes:
        kind: `ici` within a slice of TPUs, `dcn` between slices or hosts, `nvlink` and `infiniband` between
            GPUs, `memory` between devices that are threads of one machine.
        bytes_per_second: one way, from a device to its neighbour.
        seconds: what a hop takes besides.
        switched: whether each device reaches every other at this rate (a switch), not along a ring.
    """

    kind: LinkKind
    bytes_per_second: float
    seconds: float
    switched: bool = False


@dataclass(frozen=True, slots=True)
class Chip:
    """One device of a mesh.

    Attributes:
        name: as `v5e` or `h100`.
        rates: what it does in a second.
        memory: bytes it has for programs and their data.
        inner: what connects it with its neighbours: within a slice, or a node.
        outer: what connects slices or nodes, per device.
        wraps_at: sizes of an axis that are multiples of this have a link from the last device to the first;
            0 where none has.
        torus: over how many dimensions the inner links go.
    """

    name: str
    rates: Target
    memory: int
    inner: Link
    outer: Link
    wraps_at: int = 0
    torus: int = 1


def _tpu(bfloat16: float, int8: float, bytes_per_second: float) -> Target:
    flops = {**TPU.flops, "bfloat16": bfloat16, "int8": int8, "uint8": int8, "float32": bfloat16 / 3}
    return replace(TPU, flops=MappingProxyType(flops), bytes_per_second=bytes_per_second)


def _gpu(bfloat16: float, bytes_per_second: float) -> Target:
    factor = bfloat16 / GPU.flops["bfloat16"]
    flops = {dtype: rate * factor for dtype, rate in GPU.flops.items()}
    return replace(GPU, flops=MappingProxyType(flops), bytes_per_second=bytes_per_second)


_GIB: Final = 1 << 30
_DCN: Final = Link("dcn", 6.25e9, 10e-6, switched=True)  # 25 GB/s a host of four chips
_NVLINK: Final = Link("nvlink", 4.5e11, 2e-6, switched=True)
_INFINIBAND: Final = Link("infiniband", 5e10, 5e-6, switched=True)

CHIPS: Final[Mapping[str, Chip]] = MappingProxyType(
    {
        chip.name: chip
        for chip in (
            Chip("cpu", CPU, 16 * _GIB, Link("memory", 1e10, 5e-6, True), Link("dcn", 1e9, 50e-6, True)),
            Chip("v4", _tpu(275e12, 275e12, 1.2e12), 32 * _GIB, Link("ici", 4.5e10, 1e-6), _DCN, 4, 3),
            Chip("v5e", _tpu(197e12, 394e12, 8.1e11), 16 * _GIB, Link("ici", 5e10, 1e-6), _DCN, 16, 2),
            Chip("v5p", _tpu(459e12, 918e12, 2.8e12), 95 * _GIB, Link("ici", 1e11, 1e-6), _DCN, 4, 3),
            Chip("v6e", _tpu(918e12, 1836e12, 1.6e12), 32 * _GIB, Link("ici", 1e11, 1e-6), _DCN, 16, 2),
            Chip("h100", _gpu(800e12, 3.35e12), 84978434048, _NVLINK, _INFINIBAND),  # as XLA sees them
            Chip("h200", GPU, 150754820096, _NVLINK, _INFINIBAND),
        )
    }
)


def get_chip(name: str) -> Chip:
    """The chip called `name`.

    Raises:
        ValueError: there is no chip of this name; the message lists what there is.

    Example:
        >>> get_chip("v5p").torus
        3
    """
    if name not in CHIPS:
        raise ValueError(f"no chip is called {name!r}; there are {', '.join(sorted(CHIPS))}")
    return CHIPS[name]
