"""Operations with regions: loops, branches, calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lepton_jax.ir.dimensions.atoms import Dims, Ints
from lepton_jax.ir.dimensions.walk import Walk, dimension_rule, is_integer, unknown
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import Slot, slots


@dimension_rule(
    *("while", "cond", "jit", "closed_call", "core_call", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "scan"),
    reads=False,
)
def with_regions(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """What flows through a region has the same atoms on the way: a carry comes out as it went in.

    The leading dimension of what a scan reads and stacks is one and the same: an index of it is an
    iteration.
    """
    if not node.regions:
        return unknown(walk, node, operands)
    tied = slots(node)
    iterations = _iterations(walk, node, tied, operands)
    for slot in tied:
        if slot.operand is not None:
            dims = operands[slot.operand]
            for value in _values(node, slot, "inputs"):
                walk.give(value, dims[1:] if slot.kind == "scanned" else dims)
    for region in dict.fromkeys(node.regions):
        walk.run(region)
    results: list[Dims] = [()] * len(node.results)
    for slot in tied:
        outputs = [walk.of(value) for value in _values(node, slot, "outputs")]
        if slot.kind == "carry":
            assert slot.operand is not None
            outputs.insert(0, operands[slot.operand])
        for other in outputs[1:]:
            walk.unite(outputs[0], other)
        if slot.result is not None:
            results[slot.result] = (iterations, *outputs[0]) if slot.kind == "stacked" else outputs[0]
    return results


def _values(node: Node, slot: Slot, side: str) -> list[Value]:
    """The region inputs or outputs of a slot."""

    def of(region: Graph) -> list[Value]:
        return region.inputs if side == "inputs" else region.outputs

    places = slot.inputs if side == "inputs" else slot.outputs
    return [of(node.regions[r])[i] for r, i in places]


def _iterations(walk: Walk, node: Node, tied: Sequence[Slot], operands: Sequence[Dims]) -> Ints:
    """The dimension of a scan's iterations; nothing for others."""
    if node.op != "scan":
        return np.zeros(0, np.int64)
    scanned = [
        operands[slot.operand][0] for slot in tied if slot.kind == "scanned" and slot.operand is not None
    ]
    for other in scanned[1:]:
        walk.atoms.unite(scanned[0], other)
    for atoms in scanned:
        walk.note_read((atoms,))
    found = scanned[0] if scanned else walk.fresh_dim(node.params["length"])
    if not scanned or _counts(node, tied):
        walk.pin(found, node, "counts its iterations")
    walk.layers.append(found)
    return found


def _counts(node: Node, tied: Sequence[Slot]) -> bool:
    """Whether an integer that is handed on changes: what the loop does depends on how often it ran."""
    (body,) = node.regions
    return any(
        value.ndim == 0 and is_integer(value) and body.outputs[i] is not value
        for slot in tied
        if slot.kind == "carry"
        for value, i in ((body.inputs[slot.inputs[0][1]], slot.outputs[0][1]),)
    )
