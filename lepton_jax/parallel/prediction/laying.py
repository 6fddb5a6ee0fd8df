"""Copies of arrays that loops over parts read in other tiles than they were made in."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.prediction.lanes import Lanes, Tile, is_spread
from lepton_jax.parallel.prediction.span import Span
from lepton_jax.parallel.prediction.steps import Steps


class Laying:
    """The copies of a program, each made when the first loop needs one of its array."""

    def __init__(
        self,
        steps: Steps,
        lanes: Lanes,
        made_of: Callable[[Value], tuple[Value, ...]],
        read: Callable[[Value, int], None],
        brought: Container[tuple[Value, Node]],
    ) -> None:
        """There are none yet.

        Args:
            steps: the program.
            lanes: how its arrays lie.
            made_of: from which arrays in memory a value is read.
            read: reads a value in a step.
            brought: what nodes read of which they have copies of other layouts on the mesh.
        """
        self._steps = steps
        self._lanes = lanes
        self._made_of = made_of
        self._reading = read
        self._brought = brought
        self._made: dict[tuple[Value, Tile], Span | None] = {}

    def before(self, loop: Node, ahead: bool = False) -> Mapping[Value, Span]:
        """What a loop reads copies of, and these; all are made that any loop needs of the same arrays.

        Args:
            loop: any node; others read none.
            ahead: whether it does not run yet; then what it makes itself is not there.
        """
        found: dict[Value, Span] = {}
        for place, value in enumerate(loop.operands):
            tile = self._lanes.read(loop, place)
            if tile is None or (value, loop) in self._brought:
                continue
            if is_spread(value):  # each loop makes it again
                if not ahead:
                    found[value] = self._steps.span(self._lanes.size(value, tile))
                continue
            for node, at in value.uses:
                other = self._lanes.read(node, at)
                if other is not None and (value, other) not in self._made:
                    self._made[value, other] = self._copy(value, other)
            copy = self._made[value, tile]
            if copy is not None:
                found[value] = copy
        return found

    def read(self, copies: Mapping[Value, Span], step: int) -> set[Value]:
        """Read copies in a step; the arrays that are not read for it."""
        for copy in copies.values():
            copy.reads.append(step)
        return {root for value in copies for root in self._made_of(value)}

    def _copy(self, value: Value, tile: Tile) -> Span | None:
        """A copy of an array that lies so; None where it does."""
        roots = self._made_of(value)
        if len(roots) == 1 and self._lanes.lies(value, roots[0], tile):
            return None
        self._reading(value, self._steps.step(None))
        return self._steps.span(self._lanes.size(value, tile))
