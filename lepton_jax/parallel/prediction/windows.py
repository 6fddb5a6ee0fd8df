"""Gathers and scatters that XLA for TPUs takes apart, to send one part while it multiplies another.

A product whose operand is gathered, or whose result is scattered, becomes a loop over the parts, each sent on
by a permutation (Wang et al., "Overlap Communication with Dependent Computation via Decomposition", ASPLOS
2023). XLA does so where the devices that exchange split nothing but that operand and the rows of the other,
where multiplying takes long enough to hide the sending, and where no other operation reads what is gathered.
All other devices must split the product besides: what is gathered or scattered has no copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from lepton_jax.ir._cost.leaves import leaf_cost
from lepton_jax.ir.graph import Node
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.factors import factors_of
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.scattering import fills_torus

PRODUCTS: Final = frozenset({"dot_general", "ragged_dot", "ragged_dot_general", "conv_general_dilated"})
ENOUGH: Final = 4096
"""Operations for each byte that is sent on: with as many XLA gathers, with more it multiplies meanwhile. So
compiling for v5e and v5p with 4, 8 and 16 devices showed."""

PARTS_AT_ONCE: Final = 4
"""With so many devices the loop over the parts, two each way in a step, runs once."""


def is_plain(node: Node) -> bool:
    """Whether a node is a product without batches."""
    return node.op == "dot_general" and not node.params["dimension_numbers"][1][0]


@dataclass(frozen=True, slots=True)
class Product:
    """How a product is computed.

    Attributes:
        node: the product.
        operands: how its operands lie before anything is gathered.
        result: how each device has the result; may be parts of a sum.
        share: what each device does of it.
    """

    node: Node
    operands: tuple[Layout, ...]
    result: Layout
    share: float

    def gather(self, move: Collective, place: int, mesh: MeshSpec, again: bool) -> Collective:
        """The gather of an operand that nothing else reads, or the permutations that take its place.

        Args:
            move: the gather.
            place: of the operand.
            mesh: the mesh.
            again: whether a product before sent the same array on: the first step is one for both.
        """
        axes, factors = set(move.axes), factors_of(self.node)
        if move.kind != "all-gather" or len(self.operands) != 2 or not self._can(move, mesh):
            return move
        other = 1 - place
        mine = _split(factors.operands[place], self.operands[place], axes)
        theirs = _split(factors.operands[other], self.operands[other], axes)
        made = _split(factors.results[0], self.result, axes)
        if not mine or not made or made != theirs:
            return move
        shared = _all(factors.operands[other])
        if any(factor in _all(factors.operands[place]) for factor in made):
            return move
        if len({(factor in factors.reduced, factor in shared) for factor in mine}) > 1:
            return move
        summed = all(factor in factors.reduced for factor in mine)
        if not self._others(axes, mesh) <= self._apart_from(axes, place, summed):
            return move
        count = mesh.size(*move.axes)
        # Of a loop that runs once nobody reads the last two.
        return _apart(
            move, move.bytes // count, count + 1 - (2 if count == PARTS_AT_ONCE else 0) - int(again)
        )

    def scatter(self, move: Collective, want: Layout, mesh: MeshSpec, again: bool) -> Collective:
        """The sum of the parts of the result, or the permutations that take its place.

        Args:
            move: a reduce-scatter or an all-reduce.
            want: how the sum shall lie.
            mesh: the mesh.
            again: whether a sum of this shape was scattered so before.
        """
        axes, factors = set(move.axes), factors_of(self.node)
        count = mesh.size(*move.axes)
        part = move.bytes if move.kind == "reduce-scatter" else move.bytes // count
        scattered = replace(move, kind="reduce-scatter", bytes=part)
        if len(self.operands) != 2 or not self._can(scattered, mesh):
            return move
        summed = [
            _split(dims, layout, axes) for dims, layout in zip(factors.operands, self.operands, strict=True)
        ]
        if not summed[0] or summed[0] != summed[1] or not all(f in factors.reduced for f in summed[0]):
            return move
        split = [set(names) for names in want.dims if axes & set(names)]
        if set().union(*split) != axes or not self._others(axes, mesh) <= set(want.axes):
            return move
        # A loop that runs once first sends zeros, two for all of one shape.
        return _apart(move, part, count + 1 - (2 if again and count == PARTS_AT_ONCE else 0))

    @staticmethod
    def _others(axes: set[str], mesh: MeshSpec) -> set[str]:
        """The axes along which other devices stand than those that exchange."""
        return {axis.name for axis in mesh.axes if axis.size > 1} - axes

    def _apart_from(self, axes: set[str], place: int, summed: bool) -> set[str]:
        """The axes by which a product that gathers an operand falls apart into smaller ones.

        They split what both operands and the result have, or what only this operand has where it is gathered
        along what is summed over.
        """
        factors = factors_of(self.node)
        theirs = _all(factors.operands[1 - place])
        found: set[str] = set()
        for parts, names in zip(factors.operands[place], self.operands[place].dims, strict=True):
            free = not any(factor in factors.reduced for factor in parts)
            if free and axes.isdisjoint(names) and (summed or theirs.issuperset(parts)):
                found.update(names)
        return found

    def _can(self, move: Collective, mesh: MeshSpec) -> bool:
        """Whether multiplying takes long enough to hide the sending; two devices gain nothing."""
        count = mesh.size(*move.axes)
        if mesh.chip.rates.platform != "tpu" or count < 3 or fills_torus(move.axes, mesh):
            return False
        part = move.bytes if move.kind == "reduce-scatter" else move.bytes // count
        return leaf_cost(self.node).flops * self.share > ENOUGH * part


def _split(
    dims: Iterable[Sequence[int]], layout: Layout, axes: set[str]
) -> dict[int, tuple[str, ...]] | None:
    """The factors that these axes split; None where not all do, or others split the same dimension."""
    found: dict[int, tuple[str, ...]] = {}
    for factors, names in zip(dims, layout.dims, strict=True):
        if axes.isdisjoint(names):
            continue
        if not axes >= set(names) or len(factors) != 1:
            return None
        found[factors[0]] = names
    return found if {name for names in found.values() for name in names} == axes else None


def _all(dims: Iterable[Sequence[int]]) -> set[int]:
    return {factor for each in dims for factor in each}


def _apart(move: Collective, part: int, steps: int) -> Collective:
    """Both ways round the ring at once, and one more to begin or to end with."""
    return replace(move, kind="collective-permute", bytes=part, times=move.times * steps)
