"""What a machine does in a second, and what computing something takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does in a second.

    Attributes:
        name: the target's name.
        platform: JAX's name of the platform: cpu, gpu or tpu.
        flops: operations a second of products of matrices, by the operands' dtype; other
            dtypes go at the rate of float32.
        vector_flops: operations a second of elementwise arithmetic.
        bytes_per_second: of main memory.
        seconds_per_node: what starting an operation takes, whatever its size.
        seconds_per_iteration: what going once round a loop takes, besides the body.
        seconds_per_fusion: what starting a kernel takes that XLA has written itself; as for any other
            operation, if None.
        seconds_per_compiled_iteration: what going once round a loop takes that is compiled to one kernel,
            since nothing in it has to be started; None where no loop is.
        caches: (bytes, bytes a second), from the smallest: arrays up to this size are read and written at
            this rate. Larger ones go through main memory.
        fresh_bytes_per_second: of writing arrays that large for the first time in a run, since the
            system has to find the memory; as of other memory, if None.
    """

    name: str
    platform: str
    flops: Mapping[str, float] = field(hash=False)
    vector_flops: float
    bytes_per_second: float
    seconds_per_node: float
    seconds_per_iteration: float
    seconds_per_fusion: float | None = None
    seconds_per_compiled_iteration: float | None = None
    caches: tuple[tuple[float, float], ...] = ()
    fresh_bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What computing something takes.

    Attributes:
        flops: all operations.
        bytes: read and written, as if no two operations were fused.
        dot_flops: those of `flops` that products of matrices do, by dtype.
        nodes: how often an operation is started.
        iterations: how often a loop goes round.
        unknown_trip: whether a while loop is in it, counted as if it went round once.
    """

    flops: float = 0.0
    bytes: float = 0.0
    dot_flops: tuple[tuple[str, float], ...] = ()
    nodes: float = 0.0
    iterations: float = 0.0
    unknown_trip: bool = False

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            _joined(self.dot_flops, other.dot_flops),
            self.nodes + other.nodes,
            self.iterations + other.iterations,
            self.unknown_trip or other.unknown_trip,
        )

    def times(self, count: float) -> Cost:
        """The cost of doing it `count` times."""
        return Cost(
            self.flops * count,
            self.bytes * count,
            tuple((dtype, flops * count) for dtype, flops in self.dot_flops),
            self.nodes * count,
            self.iterations * count,
            self.unknown_trip,
        )


def _joined(
    a: tuple[tuple[str, float], ...], b: tuple[tuple[str, float], ...]
) -> tuple[tuple[str, float], ...]:
    if not a or not b:
        return a or b
    found = dict(a)
    for dtype, flops in b:
        found[dtype] = found.get(dtype, 0.0) + flops
    return tuple(sorted(found.items()))


NOTHING: Final = Cost()
