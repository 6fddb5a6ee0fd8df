"""Collectives: what devices send one another, how much of it, and how long it takes.

The cost model is alpha-beta along each mesh axis (Thakur, Rabenseifner and Gropp, 2005): rings where devices
are linked to neighbours, direct exchange where a switch connects them. Several axes are gone through one
after the other, each with what the ones before left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lepton_jax.parallel.meshes import MeshAxis, MeshSpec

Kind = Literal["all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute"]


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective operation of a program.

    Attributes:
        kind: as XLA calls it.
        axes: the mesh axes over which the devices exchange, in the mesh's order.
        bytes: of the result on one device, as XLA's text shows it.
        times: how often it runs.
        what: the array, for printing.
    """

    kind: Kind
    axes: tuple[str, ...]
    bytes: int
    times: int = 1
    what: str = ""

    def repeated(self, times: int) -> Collective:
        """The same, run `times` as often."""
        return replace(self, times=self.times * times)

    def sent(self, mesh: MeshSpec) -> float:
        """The bytes that one device sends each time it runs.

        Example:
            >>> mesh = MeshSpec.of("data=4", chip="v5e")
            >>> Collective("all-reduce", ("data",), 1000).sent(mesh)
            1500.0
        """
        n = mesh.size(*self.axes)
        if self.kind == "collective-permute":
            return float(self.bytes)
        share = {"all-reduce": 2.0 / n, "reduce-scatter": 1.0, "all-gather": 1.0 / n, "all-to-all": 1.0 / n}
        return self.bytes * (n - 1) * share[self.kind]

    def seconds(self, mesh: MeshSpec) -> float:
        """How long it takes each time it runs, with nothing else on the links."""
        axes = [mesh.axis(name) for name in self.axes if mesh.size(name) > 1]
        if not axes:
            return 0.0
        if self.kind == "collective-permute":
            slow = min(axes, key=lambda axis: axis.link.bytes_per_second)
            return self.bytes / slow.link.bytes_per_second + slow.link.seconds
        if self.kind == "all-reduce":
            scattered = replace(self, kind="reduce-scatter", bytes=self.bytes // mesh.size(*self.axes))
            return 2 * scattered.seconds(mesh)
        if self.kind == "all-to-all":
            return sum(_exchange(self.bytes, axis) for axis in axes)
        # The fastest axis carries the most: it gathers last and scatters first.
        left = float(self.bytes if self.kind == "all-gather" else self.bytes * mesh.size(*self.axes))
        total = 0.0
        for axis in sorted(axes, key=lambda axis: -axis.link.bytes_per_second):
            total += _gather(left, axis)
            left /= axis.size
        return total


def _gather(whole: float, axis: MeshAxis) -> float:
    """An all-gather or a reduce-scatter of `whole` bytes along an axis."""
    lanes = 1 if axis.link.switched or not axis.wraps else 2
    hops = 1 if axis.link.switched else axis.size - 1
    return (
        whole * (axis.size - 1) / axis.size / (lanes * axis.link.bytes_per_second) + hops * axis.link.seconds
    )


def _exchange(local: float, axis: MeshAxis) -> float:
    """An all-to-all along an axis of `local` bytes on each device: a ring passes a quarter over each link."""
    if axis.link.switched:
        return local * (axis.size - 1) / axis.size / axis.link.bytes_per_second + axis.link.seconds
    share = axis.size / (8.0 if axis.wraps else 4.0)
    return local * share / axis.link.bytes_per_second + axis.size / 2 * axis.link.seconds
