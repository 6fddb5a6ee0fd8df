"""Gathers and scatters that XLA for TPUs takes apart, to send one part while it multiplies another.

A product whose operand is gathered, or whose result is scattered, over all devices becomes a loop over the
parts, each sent on by a permutation (Wang et al., "Overlap Communication with Dependent Computation via
Decomposition", ASPLOS 2023). XLA does so where multiplying takes at least as long as sending, and where no
other operation reads what is gathered. Both conditions were found by compiling for v5e.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from lepton_jax.ir._cost.leaves import leaf_cost
from lepton_jax.ir.graph import Node
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.meshes import MeshSpec

PRODUCTS: Final = frozenset({"dot_general", "ragged_dot", "ragged_dot_general", "conv_general_dilated"})


def windowed(
    moves: Sequence[Collective], node: Node | None, share: float, mesh: MeshSpec, kind: str
) -> Sequence[Collective]:
    """The moves, or the permutations that take their place.

    Args:
        moves: what brings an operand of `node`, or its result, where it shall be.
        node: who multiplies.
        share: what each device does of it.
        mesh: the mesh.
        kind: of the collective that may be taken apart.
    """
    if len(moves) != 1 or node is None or node.op not in PRODUCTS or mesh.chip.rates.platform != "tpu":
        return moves
    (move,) = moves
    count = mesh.size(*move.axes)
    if move.kind != kind or count != mesh.devices or count < 3:
        return moves
    flops = leaf_cost(node).flops * share
    rate = mesh.chip.rates.flops["bfloat16"]
    links = 2 * mesh.chip.torus * mesh.chip.inner.bytes_per_second
    if flops / rate < move.sent(mesh) / links:
        return moves
    part = move.bytes if kind == "reduce-scatter" else move.bytes // count
    # Both ways round the ring at once, and one more to begin with.
    return [replace(move, kind="collective-permute", bytes=part, times=move.times * (count + 1))]
