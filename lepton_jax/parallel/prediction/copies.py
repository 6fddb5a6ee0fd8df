"""Arrays that are kept in another layout than their own, for whoever reads them so next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.events import Move
from lepton_jax.parallel.prediction.heights import FAR
from lepton_jax.parallel.prediction.values import turned
from lepton_jax.parallel.prediction.windows import Product
from lepton_jax.parallel.resharding import reshard

_GATHERS: Final = ("all-gather", "all-reduce")


class Copies:
    """The copies of a program's values.

    Attributes:
        held: of each value the layouts in which it is kept besides its own.
        readers: how many read a value so.
    """

    def __init__(self, held: dict[Value, list[Layout]], mesh: MeshSpec) -> None:
        self.held = held
        self.mesh = mesh
        self.readers: Counter[tuple[Value, Layout]] = Counter()
        self._lowest: dict[tuple[Value, Layout], int] = {}

    def has(self, value: Value, layout: Layout, moves: Sequence[Collective], height: int | None) -> bool:
        """Whether a reader finds what it needs; else there is a copy for it now.

        XLA for TPUs gathers again what was read too long ago (`heights`); what devices exchange it keeps.

        Args:
            value: the array.
            layout: how it is needed.
            moves: what would bring it there.
            height: how far the reader stands from the end; None: always near.
        """
        self.readers[value, layout] += 1
        copies = self.held.setdefault(value, [])
        again = self.mesh.chip.rates.platform == "tpu" and any(each.kind in _GATHERS for each in moves)
        for copy in copies:
            if reshard(value.aval, copy, layout, self.mesh):
                continue
            lowest = self._lowest[value, copy]
            if not again or height is None or lowest <= height + 1 + FAR:
                self._lowest[value, copy] = lowest if height is None else min(lowest, height)
                return True
        if moves:
            self._lowest[value, layout] = height or 0
            copies += [layout] if layout not in copies else []
        return False


def taken_apart(
    gathered: Iterable[tuple[Move, Layout]], products: Mapping[Node, Product], copies: Copies
) -> dict[int, Move]:
    """What takes the place of gathers whose only reader multiplies, by the `id` of their moves.

    Args:
        gathered: moves of one gather each, and the layouts that they bring.
        products: how the products of the program are computed.
        copies: who reads what.
    """
    apart: dict[int, Move] = {}
    sent: set[tuple[Value, Layout]] = set()
    for move, layout in gathered:
        if copies.readers[move.value, layout] != 1 or move.node is None:
            continue
        place, key = move.node.operands.index(move.value), (turned(move.value), layout)
        each = products[move.node].gather(move.collective, place, copies.mesh, key in sent)
        if each.kind == "collective-permute":
            sent.add(key)
            apart[id(move)] = replace(move, collective=each)
    return apart
