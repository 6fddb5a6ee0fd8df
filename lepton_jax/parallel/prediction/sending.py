"""What devices send one another, by the arrays that are sent and who needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.elements import FUSED
from lepton_jax.parallel.prediction.events import Move, Walked
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
        halfway: the values from which sums for outputs are made that are scattered over some axes before
            they are added up over others; the former axes.
    """

    def __init__(self, walked: Walked, mesh: MeshSpec) -> None:
        self._walked = walked
        sent = [move for move in walked.moves if move.value not in walked.held]
        self.moved: Mapping[Value, Collective] = {move.value: move.collective for move in sent}
        self.gathers = _gathers(walked)
        self.apart: Mapping[Node, Collective] = {
            move.node: move.collective
            for move in walked.moves
            if move.node is not None
            and move.node.op in PRODUCTS
            and (move.collective.kind == _IN_PARTS or _is_halved(move, mesh))
        }
        self.scattered: Mapping[Node, int] = {
            move.node: move.collective.bytes
            for move in sent
            if move.node in self.apart and move.collective.kind == _IN_PARTS
        }
        self.halfway: Mapping[Value, Sequence[str]] = {
            value: move.collective.axes
            for move in sent
            if move.value in walked.parts and move.collective.kind == "reduce-scatter"
            if self.moved[move.value].kind == "all-reduce"
            for value in _converted(move.value)
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


def _is_halved(move: Move, mesh: MeshSpec) -> bool:
    """Whether two devices that add up a gradient make it in halves, each half of which goes to one of them.

    So XLA for TPUs does it, however little there is to multiply; the bytes are those of scattering.
    """
    if mesh.chip.rates.platform != "tpu" or not move.after or move.node is None:
        return False
    each = move.collective
    return move.node.op == "dot_general" and each.kind == "reduce-scatter" and mesh.size(*each.axes) == 2


def _converted(value: Value) -> list[Value]:
    """A value, and those from which it is made one by one by elements."""
    found = [value]
    while (node := found[-1].node) is not None and node.op in FUSED and len(node.operands) == 1:
        found.append(node.operands[0])
    return found


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
