"""The steps of a program, and the arrays of one device, each with its bytes."""

from __future__ import annotations

from typing import Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.factors.elementwise import ELEMENTWISE
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.elements import WINDOWS
from lepton_jax.parallel.prediction.events import Walked
from lepton_jax.parallel.prediction.sizes import local_bytes
from lepton_jax.parallel.prediction.span import Span

OUTSIDE: Final = frozenset({"v5p"})
"""Chips whose vector memory only operations on elements write to, not products, collectives and copies."""


MINOR: Final = 4
"""Dimensions of the arrays whose tiles convolutions choose: with examples, channels, and two more or more."""


class Steps:
    """What runs, in order, and what is in memory.

    Attributes:
        found: all spans.
        nodes: the node that runs at each step, of a product with operations within it the product; None
            between.
        depths: of each step the number of loops around it.
        mesh: the mesh.
        walked: how arrays lie, and what is sent.
        tiled: whether arrays are laid out in tiles, as on TPUs.
    """

    def __init__(self, walked: Walked, mesh: MeshSpec) -> None:
        self.found: list[Span] = []
        self.nodes: list[Node | None] = [None]
        self.depths: list[int] = [0]
        self.mesh = mesh
        self.walked = walked
        self.tiled = mesh.chip.rates.platform == "tpu"
        self._sizes: dict[Value, int] = {}
        self._minors: dict[Value, tuple[int, ...] | None] = {}
        self._loops: list[int] = []

    def layout(self, value: Value) -> Layout:
        """How a value lies."""
        return self.walked.lies.get(value) or Layout.whole(value.ndim)

    def size(self, value: Value) -> int:
        """The bytes of one device's part."""
        known = self._sizes.get(value)
        if known is None:
            known = self._sizes[value] = self._size(value)
        return known

    def _size(self, value: Value) -> int:
        if value.is_const:
            return 0
        return local_bytes(value, self.layout(value), self.mesh, self._minor(value))

    def _minor(self, value: Value) -> tuple[int, ...] | None:
        """The dimensions that tiles of an array cover: of what convolutions make examples and channels.

        So has what is made of that by elements, or of its windows. None: any.
        """
        node = value.node
        if node is None or value.ndim < MINOR or not self.tiled:
            return None
        if value not in self._minors:
            self._minors[value] = None
            if node.op == "conv_general_dilated":
                self._minors[value] = tuple(node.params["dimension_numbers"].out_spec[:2])
            elif node.op in ELEMENTWISE or node.op in WINDOWS:
                same = (self._minor(each) for each in node.operands if each.ndim == value.ndim)
                self._minors[value] = next((each for each in same if each is not None), None)
        return self._minors[value]

    def share(self, node: Node) -> float:
        """What each device does of a node."""
        return self.walked.shares.get(node, 1.0)

    def span(self, size: int) -> Span:
        """An array that the last step makes."""
        made = Span(size, len(self.nodes) - 1, outside=self.mesh.chip.name in OUTSIDE)
        self.found.append(made)
        return made

    def early(self, size: int) -> Span:
        """An array that is made of nothing that is computed, and read by the last step.

        XLA makes it first of all, in a loop in its beginning.
        """
        made = self.span(size)
        made.reads.append(made.born)
        made.born = self._loops[-1] if self._loops else min(1, made.born)
        return made

    def step(self, node: Node | None) -> int:
        """One more step; its number."""
        self.nodes.append(node)
        self.depths.append(len(self._loops))
        return len(self.nodes) - 1

    def enter_loop(self, begin: int) -> None:
        """What follows is in a loop that begins so."""
        self._loops.append(begin)

    def leave_loop(self) -> None:
        """What follows is not in the last loop."""
        self._loops.pop()
