"""The steps of a program, and the arrays of one device, each with its bytes."""

from __future__ import annotations

from typing import Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.events import Walked
from lepton_jax.parallel.prediction.sizes import local_bytes
from lepton_jax.parallel.prediction.span import Span

OUTSIDE: Final = frozenset({"v5p"})
"""Chips whose vector memory only operations on elements write to, not products, collectives and copies."""


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
        return local_bytes(value, self.layout(value), self.mesh)

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
