"""What is predicted of a program on a mesh."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.events import Move


@dataclass(frozen=True)
class Prediction:
    """What a program does on each device of a mesh.

    Attributes:
        mesh: the mesh.
        moves: the collectives, each with the array it moves and the node that needs it, in program order; one
            that carries several arrays has the last of them.
        flops: what each device computes.
        compute: seconds of arithmetic.
        traffic: seconds in which its memory is read and written.
        communication: seconds of all collectives, one after the other.
        exposed: seconds of collectives that run while nothing else can.
        arguments: bytes of the inputs.
        outputs: bytes of the outputs, without those that take the memory of donated inputs.
        temporaries: bytes of all else when the most is there.
        peak: bytes of all when the most is there.
        where: the node that runs then; None between nodes.
        alive: the arrays that are there then besides inputs and outputs.
    """

    mesh: MeshSpec
    moves: tuple[Move, ...]
    flops: float
    compute: float
    traffic: float
    communication: float
    exposed: float
    arguments: int
    outputs: int
    temporaries: int
    peak: int
    where: Node | None
    alive: tuple[Value, ...] = ()

    @property
    def collectives(self) -> tuple[Collective, ...]:
        """The collectives alone."""
        return tuple(move.collective for move in self.moves)

    @property
    def seconds(self) -> float:
        """How long the program takes: the slower of arithmetic and memory, and the exposed collectives."""
        return max(self.compute, self.traffic) + self.exposed

    @property
    def fits(self) -> bool:
        """Whether the chip has this much memory."""
        return self.peak <= self.mesh.chip.memory

    def bytes(self, kind: str | None = None, axes: tuple[str, ...] | None = None) -> int:
        """The bytes of the results of the collectives on one device, each as often as it runs.

        Args:
            kind: only those of this kind.
            axes: only those over just these axes.
        """
        return sum(each.bytes * each.times for each in self._chosen(kind, axes))

    def count(self, kind: str | None = None, axes: tuple[str, ...] | None = None) -> int:
        """How many collectives run."""
        return sum(each.times for each in self._chosen(kind, axes))

    def _chosen(self, kind: str | None, axes: tuple[str, ...] | None) -> Iterator[Collective]:
        for each in self.collectives:
            if kind in (None, each.kind) and axes in (None, each.axes):
                yield each

    def __str__(self) -> str:
        lines = [f"on {self.mesh.devices} {self.mesh.chip.name} ({self.mesh}), per device:"]
        totals: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {}
        for each in self.collectives:
            count, size = totals.get((each.kind, each.axes), (0, 0))
            totals[each.kind, each.axes] = count + each.times, size + each.bytes * each.times
        for (kind, axes), (count, size) in totals.items():
            lines.append(f"  {count} {kind} over {'+'.join(axes)}: {size / 1e6:.3f} MB")
        if not totals:
            lines.append("  no collectives")
        times = (self.compute, self.traffic, self.communication, self.exposed)
        lines.append(
            "  compute {:.3f} ms, memory {:.3f} ms, communication {:.3f} ms, exposed {:.3f} ms".format(
                *(1e3 * each for each in times)
            )
        )
        sizes = (self.arguments, self.outputs, self.temporaries, self.peak)
        lines.append(
            "  arguments {:.3f} MB, outputs {:.3f} MB, temporaries {:.3f} MB, peak {:.3f} MB".format(
                *(each / 1e6 for each in sizes)
            )
        )
        return "\n".join(lines)
