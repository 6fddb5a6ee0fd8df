"""What devices send one another, by the arrays that are sent and who needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.prediction.elements import FUSED
from lepton_jax.parallel.prediction.events import Walked
from lepton_jax.parallel.prediction.windows import PRODUCTS

_IN_PARTS: Final = "collective-permute"


class Sending:
    """What is sent.

    Attributes:
        moved: the values that are sent as they are made, and how.
        gathers: who has which value brought to lie otherwise before reading it, and how it lies then; not
            what is sent part by part.
        apart: the products that are computed in parts, each sent on while others are multiplied; how.
        scattered: of those whose results are scattered so, the bytes of a part.
        sums: the values that are parts of a sum which stands between them and who reads them.
    """

    def __init__(self, walked: Walked) -> None:
        self._walked = walked
        sent = [move for move in walked.moves if move.value not in walked.held]
        self.moved: Mapping[Value, Collective] = {move.value: move.collective for move in sent}
        self.gathers = _gathers(walked)
        self.apart: Mapping[Node, Collective] = {
            move.node: move.collective
            for move in walked.moves
            if move.node is not None and move.node.op in PRODUCTS and move.collective.kind == _IN_PARTS
        }
        self.scattered: Mapping[Node, int] = {
            move.node: move.collective.bytes
            for move in sent
            if move.node in self.apart and move.collective.kind == _IN_PARTS
        }
        self.sums = {
            value
            for value, layout in walked.lies.items()
            if layout.partial and value.node not in self.scattered
        }

    def is_brought(self, value: Value) -> bool:
        """Whether an array, or what it is made of by elements, comes from other devices."""
        if self._walked.held.get(value) or value in self.moved:
            return True
        node = value.node
        return node is not None and node.op in FUSED and any(map(self.is_brought, node.operands))


def _gathers(walked: Walked) -> Mapping[tuple[Value, Node], Layout]:
    found: dict[tuple[Value, Node], Layout] = {}
    counts: dict[Value, int] = {}
    for move in walked.moves:
        layouts: Sequence[Layout] = walked.held.get(move.value, ())
        if not layouts or move.node is None or move.collective.kind == _IN_PARTS:
            continue
        if (move.value, move.node) not in found:
            which = counts[move.value] = counts.get(move.value, -1) + 1
            found[move.value, move.node] = layouts[min(which, len(layouts) - 1)]
    return found
