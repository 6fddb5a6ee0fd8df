"""What happens in a program, in its order: operations and collectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.layouts import Layout


@dataclass(frozen=True, slots=True)
class Move:
    """A collective, and where it comes from.

    Attributes:
        collective: with `times` and `what`.
        value: the array that is moved.
        node: who needs it so, or who makes parts of it; None for outputs of the program.
        ahead: whether it needs nothing that is computed: it can run while something else is.
        after: whether nothing that is computed needs it: it can run while something else is.
    """

    collective: Collective
    value: Value
    node: Node | None
    ahead: bool = False
    after: bool = False


@dataclass
class Walked:
    """What was found.

    Attributes:
        moves: the collectives, in the order of the program, without those that only move rows of what a sum
            left on the wrong device.
        shares: of each leaf node, what each device computes of it.
        times: of each leaf node, how often it runs.
        held: of each value the layouts in which it is kept besides its own.
        lies: how each value lies in the end.
        parts: of each value that only outputs are made of, the parts of the sum that it was before.
        events: nodes and collectives, in the order of the program.
        loops: of each event within a loop, the number of the innermost one.
    """

    moves: list[Move]
    shares: dict[Node, float]
    times: dict[Node, int]
    held: dict[Value, list[Layout]]
    lies: dict[Value, Layout]
    parts: dict[Value, Layout]
    events: list[Node | Move] = field(default_factory=list)
    loops: dict[int, int] = field(default_factory=dict)

    def note(self, event: Node | Move, loop: int | None) -> None:
        """One more event."""
        self.events.append(event)
        if loop is not None:
            self.loops[id(event)] = loop

    def exchange(self, by: Mapping[int, Move]) -> None:
        """Others in place of moves, by their `id`."""
        if not by:
            return
        for old, new in by.items():
            if old in self.loops:
                self.loops[id(new)] = self.loops[old]
        self.moves = [by.get(id(move), move) for move in self.moves]
        self.events = [by.get(id(event), event) for event in self.events]

    def loop_of(self, event: Node | Move) -> int | None:
        """The loop that an event is in."""
        return self.loops.get(id(event))
