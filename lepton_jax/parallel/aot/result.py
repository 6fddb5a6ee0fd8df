"""What compiling ahead of time found: memory, collectives, cycles, advice, and how people read them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lepton_jax.parallel.aot.advice import OutOfMemory
from lepton_jax.parallel.aot.cycles import seconds
from lepton_jax.parallel.aot.hlo import CompiledCollective, totals
from lepton_jax.parallel.aot.shardy import Buffer
from lepton_jax.parallel.aot.topologies import Topology
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.words import bytes_text


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device, as the compiler plans them.

    Attributes:
        arguments: of the arguments.
        outputs: of the results; those that take a donated argument's place too.
        aliased: of results that take a donated argument's place.
        temporaries: of all else while it runs.
        code: of the program itself.
        host: on the host, per device: what was offloaded.
        peak: the most at any time; of what the compiler says it is, else the sum.
        available: what the device has.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    host: int
    peak: int
    available: int


@dataclass(frozen=True)
class Compiled:
    """A program compiled ahead of time.

    Attributes:
        name: of the function.
        topology: for what it was compiled.
        mesh: its mesh, as planning sees it.
        fits: whether it fits into the memory of a device.
        memory: what it needs there; None where the compiler gave up for want of memory.
        shortage: what the compiler said when it gave up.
        collectives: what devices send one another.
        cycles: the compiler's estimate of compute cycles; None where it makes none.
        flops: floating-point operations of one device, as XLA counts them: the body of a loop once.
        lower_seconds: tracing and lowering.
        compile_seconds: compiling.
        advice: what would make it fit.
        largest: the largest arrays on one device, where Shardy could be asked.
        executable: JAX's; None where it did not fit.
    """

    name: str
    topology: Topology
    mesh: MeshSpec
    fits: bool
    memory: Memory | None
    shortage: OutOfMemory | None
    collectives: tuple[CompiledCollective, ...]
    cycles: int | None
    flops: float | None
    lower_seconds: float
    compile_seconds: float
    advice: tuple[str, ...] = ()
    largest: tuple[Buffer, ...] = ()
    executable: Any = None

    @property
    def compute_seconds(self) -> float | None:
        """The time of the estimated cycles, where the chip's clock is known."""
        return None if self.cycles is None else seconds(self.cycles, self.topology.chip)

    @property
    def communication_seconds(self) -> float:
        """The time of the collectives one after the other, by data sheets; of those whose axes are known."""
        known = [each.collective() for each in self.collectives if each.axes]
        return sum(each.seconds(self.mesh) * each.times for each in known)

    def to_json(self) -> dict[str, Any]:
        """All figures, for machines to read."""
        plain = dataclasses.asdict
        return {
            "name": self.name,
            "topology": self.topology.name,
            "devices": self.mesh.devices,
            "mesh": {axis.name: axis.size for axis in self.mesh.axes},
            "fits": self.fits,
            "memory": None if self.memory is None else plain(self.memory),
            "needed": self.shortage.needed if self.shortage else None,
            "available": self.shortage.available if self.shortage else self.topology.chip.memory,
            "collectives": [
                {
                    "kind": each.kind,
                    "bytes": each.bytes,
                    "times": each.times,
                    "axes": each.axes,
                    "devices": each.size,
                    "shapes": each.shapes,
                    "op_name": each.op_name,
                }
                for each in self.collectives
            ],
            "totals": {
                kind: {"count": count, "bytes": sum_}
                for kind, (count, sum_) in totals(self.collectives).items()
            },
            "cycles": self.cycles,
            "compute_seconds": self.compute_seconds,
            "communication_seconds": self.communication_seconds,
            "flops": self.flops,
            "lower_seconds": self.lower_seconds,
            "compile_seconds": self.compile_seconds,
            "advice": self.advice,
            "largest": [plain(each) for each in self.largest],
        }

    def __str__(self) -> str:
        lines = [f"{self.name} for {self.topology.name}: {self.mesh.devices} devices, mesh {self.mesh}"]
        lines += self._memory_lines()
        lines += _collective_lines(self.collectives, self.mesh) if self.fits or self.collectives else []
        if self.cycles is not None:
            clock = "" if self.compute_seconds is None else f" ({self.compute_seconds * 1e3:.4g} ms)"
            lines.append(f"estimated cycles   {self.cycles:,}{clock} of compute on each device")
        lines.append(
            f"compiled in        {self.compile_seconds:.1f} s (lowered in {self.lower_seconds:.1f} s)"
        )
        lines += [f"advice             {each}" for each in self.advice]
        return "\n".join(lines)

    def _memory_lines(self) -> list[str]:
        if self.shortage is not None:
            short = self.shortage
            needed, available, missing = map(
                bytes_text, (short.needed, short.available, short.needed - short.available)
            )
            return [
                f"does not fit       each device needs {needed} and has {available}: {missing} are missing"
            ]
        assert self.memory is not None
        m = self.memory
        verdict = "fits" if self.fits else f"does not fit: {bytes_text(m.peak - m.available)} are missing"
        lines = [
            f"memory per device  {bytes_text(m.peak)} of {bytes_text(m.available)} at the peak: {verdict}",
            f"                   arguments {bytes_text(m.arguments)}, outputs {bytes_text(m.outputs)} "
            f"({bytes_text(m.aliased)} in place of arguments), temporaries {bytes_text(m.temporaries)}",
        ]
        return lines + ([f"                   on the host {bytes_text(m.host)}"] if m.host else [])


def _collective_lines(found: tuple[CompiledCollective, ...], mesh: MeshSpec) -> list[str]:
    sums: dict[tuple[str, str], tuple[int, int, float]] = {}
    for each in found:
        over = f"{each.size} devices" if each.axes is None else "+".join(each.axes) or "one device"
        count, total, sent = sums.get((each.kind, over), (0, 0, 0.0))
        more = each.collective().sent(mesh) * each.times if each.axes else 0.0
        sums[each.kind, over] = (count + each.times, total + each.bytes * each.times, sent + more)
    lines = [
        f"{kind} over {over}: {count} times, results of {bytes_text(total)}"
        + (f", {bytes_text(sent)} sent" if sent else "")
        for (kind, over), (count, total, sent) in sums.items()
    ]
    heads = ["collectives        ", *["                   "] * (len(lines) - 1)]
    if not lines:
        return ["collectives        none"]
    return [head + line for head, line in zip(heads, lines, strict=True)]
