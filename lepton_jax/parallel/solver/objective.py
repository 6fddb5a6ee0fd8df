"""What the solver looks for: the least time, or the fewest bytes on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction import Prediction
from lepton_jax.parallel.resharding import seconds
from lepton_jax.parallel.solver.overlap import HIDDEN

_EACH: Final = 1e-7
"""Seconds for each collective: an all-reduce over two axes takes as long as to scatter over one, add up over
the other and gather, but is joined with others."""


@dataclass(frozen=True)
class Objective:
    """What counts how much.

    Attributes:
        name: as the user says it.
        byte: what a byte counts that a device sends.
        second: what a second counts.

    Example:
        >>> TIME.words(0.002), BYTES.words(12_160_000.0)
        ('2 ms', '12.16 MB')
    """

    name: str
    byte: float
    second: float

    def of(self, moves: Iterable[Collective], mesh: MeshSpec) -> float:
        """What collectives count, one after the other; of what takes as long, the fewer the better."""
        known = tuple(moves)
        total = self.second * (seconds(known, mesh) + _EACH * sum(each.times for each in known))
        return total + self.byte * sent(known, mesh) if self.byte else total

    def cost(self, predicted: Prediction) -> float:
        """What a program counts, with a little for what is hidden.

        No more is hidden than a step takes, so what costs less is predicted to be slower by this part at
        most.
        """
        hidden = predicted.communication - predicted.exposed
        return self.amount(predicted.seconds + HIDDEN * hidden, sent(predicted.collectives, predicted.mesh))

    def amount(self, seconds: float, sent: float) -> float:
        """What so many seconds and so many bytes count together."""
        return self.second * seconds + self.byte * sent

    def whole(self, predicted: Prediction) -> float:
        """What a program counts; what is hidden counts nothing."""
        return self.amount(predicted.seconds, sent(predicted.collectives, predicted.mesh))

    def plain(self, predicted: Prediction) -> float:
        """The seconds of a program, or the bytes that it sends."""
        return sent(predicted.collectives, predicted.mesh) if self.byte else predicted.seconds

    def words(self, amount: float) -> str:
        """An amount with its unit."""
        return f"{amount / 1e6:.4g} MB" if self.byte else f"{amount * 1e3:.4g} ms"


TIME: Final = Objective("time", 0.0, 1.0)
BYTES: Final = Objective("bytes", 1.0, 1e6)
"""Of what sends as much, the faster: a millisecond counts as a kilobyte."""

OBJECTIVES: Final[Mapping[str, Objective]] = MappingProxyType({each.name: each for each in (TIME, BYTES)})


def sent(moves: Iterable[Collective], mesh: MeshSpec) -> float:
    """The bytes that one device sends in these collectives, each as often as it runs."""
    return sum(each.sent(mesh) * each.times for each in moves)
