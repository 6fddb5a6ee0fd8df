"""How long a program takes on one device: arithmetic, memory traffic, collectives, what of them is exposed.

Two things run at once, arithmetic and links. A collective of what is there from the start, as FSDP's gathers
of the parameters, begins as soon as the links are free, and whoever needs it waits for its end; one that only
outputs wait for, as the sum of a gradient, begins when its operand is there, and nobody waits. All else, as
the sums within the layers of tensor parallelism, waits and is waited for ("How to Scale Your Model", Austin
et al., 2025, chapter 5). In a loop the links are busy for what they do in one step, each step alike.

On TPUs XLA gathers ahead within products (its asynchronous collective fusions), not beside look-ups: what the
first product reads is waited for. Sums of gradients wait too, unless a loop over the parts sends them while
it multiplies (`prediction.windows`), or they go from slice to slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lepton_jax.ir._cost.leaves import leaf_cost
from lepton_jax.ir.cost import seconds
from lepton_jax.ir.graph import Node
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.elements import FUSED
from lepton_jax.parallel.prediction.events import Move, Walked
from lepton_jax.parallel.prediction.windows import PRODUCTS
from lepton_jax.targets.rates import Target


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds on each device; see `Prediction`."""

    flops: float
    compute: float
    traffic: float
    communication: float
    exposed: float


def times_of(found: Walked, moves: Sequence[Move], mesh: MeshSpec) -> Times:
    """What the nodes and the collectives of a program take.

    Args:
        found: the program.
        moves: its collectives, combined.
        mesh: the mesh.
    """
    flops = compute = traffic = 0.0
    for node, share in found.shares.items():
        often = found.times[node]
        busy, moved = _spent(node, share, mesh.chip.rates)
        flops += leaf_cost(node).flops * share * often
        compute += busy * often
        traffic += moved * often
    total = sum(move.collective.seconds(mesh) * move.collective.times for move in moves)
    return Times(flops, compute, traffic, total, min(total, _exposed(found, mesh)))


def arithmetic(node: Node, share: float, rates: Target) -> float:
    """Seconds of arithmetic of a node on one device, which does such a share of it."""
    return seconds(replace(leaf_cost(node), bytes=0.0, nodes=0.0, iterations=0.0).times(share), rates)


def _spent(node: Node, share: float, rates: Target) -> tuple[float, float]:
    """Seconds of arithmetic, and of memory traffic, of a node on one device."""
    moved = 0.0 if node.op in FUSED else leaf_cost(node).bytes * share / rates.bytes_per_second
    return arithmetic(node, share, rates), moved


def _exposed(found: Walked, mesh: MeshSpec) -> float:
    """The seconds in which nothing but links is at work."""
    now = free = worked = 0.0
    first = math.inf if mesh.chip.rates.platform == "tpu" else 0.0  # when the first product begins
    loops: dict[int, list[Node | Move]] = {}
    for event in found.events:
        often = found.loop_of(event)
        if often is not None:
            loops.setdefault(often, []).append(event)
        elif isinstance(event, Move):
            spent = event.collective.seconds(mesh) * event.collective.times
            begin = max(free, min(first, now)) if event.ahead else max(free, now)
            free = begin + spent
            now = now if _hides(event, mesh) else max(now, free)
        else:
            spent = max(_spent(event, found.shares[event], mesh.chip.rates))
            first = min(first, now) if event.op in PRODUCTS else first
            now, worked = now + spent, worked + spent
    return max(now, free) - worked + sum(_exposed_in(events, found, mesh) for events in loops.values())


def _hides(move: Move, mesh: MeshSpec) -> bool:
    """Whether the program goes on while this is sent, though not before it is."""
    each = move.collective
    if not move.after or mesh.chip.rates.platform != "tpu" or each.kind == "collective-permute":
        return move.after
    return any(mesh.axis(name).link.kind == "dcn" for name in each.axes)


def _exposed_in(events: Sequence[Node | Move], found: Walked, mesh: MeshSpec) -> float:
    """The exposed seconds of a loop: what is waited for, and what of the rest is more than the work."""
    work = waits = beside = 0.0
    for event in events:
        if not isinstance(event, Move):
            work += max(_spent(event, found.shares[event], mesh.chip.rates)) * found.times[event]
            continue
        spent = event.collective.seconds(mesh) * event.collective.times
        if event.ahead or _hides(event, mesh):
            beside += spent
        else:
            waits += spent
    return waits + max(0.0, beside - work)
