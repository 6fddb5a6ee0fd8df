"""An array in memory, and the copies in which arrays are read that lie otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.prediction.events import Walked


@dataclass(slots=True, eq=False)
class Span:
    """An array, and when it is there.

    Attributes:
        bytes: on one device.
        born: the step that makes it; 0 for what is there from the start.
        reads: the steps that read it.
        argument: whether it is an input.
        given: whether it has memory all the time, as inputs and outputs have.
        main: whether it is only ever in the main memory.
        outside: whether it is made in the main memory, from which it may be fetched.
        shares: whether it may take the place of what it is made of, as what is made by elements does.
    """

    bytes: int
    born: int
    reads: list[int] = field(default_factory=list)
    argument: bool = False
    given: bool = False
    main: bool = False
    outside: bool = False
    shares: bool = False

    @property
    def last(self) -> int:
        """The step after which nobody reads it."""
        return max((self.born, *self.reads))


def gathers(walked: Walked) -> Mapping[tuple[Value, Node], Layout]:
    """Who has which value brought to lie otherwise before reading it; not what is sent part by part."""
    found: dict[tuple[Value, Node], Layout] = {}
    counts: dict[Value, int] = {}
    for move in walked.moves:
        layouts: Sequence[Layout] = walked.held.get(move.value, ())
        if not layouts or move.node is None or move.collective.kind == "collective-permute":
            continue
        if (move.value, move.node) not in found:
            which = counts[move.value] = counts.get(move.value, -1) + 1
            found[move.value, move.node] = layouts[min(which, len(layouts) - 1)]
    return found
