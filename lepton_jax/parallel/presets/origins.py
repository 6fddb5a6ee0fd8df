"""Where parameters are read: under another dtype, in another order, inside loops."""

from __future__ import annotations

from typing import Final

from lepton_jax.ir.graph import Value
from lepton_jax.ir.regions import slots
from lepton_jax.parallel.presets.arrangement import Work

Origins = dict[Value, tuple[int, tuple[int, ...]]]
_KEEP: Final = frozenset(
    {"convert_element_type", "transpose", "copy", "reduce_precision", "optimization_barrier"}
)


def origins_of(work: Work) -> Origins:
    """Values that are parameters in another dtype or order: the position, of each dimension the one of it."""
    inputs = work.graph.inputs
    found = {inputs[i]: (i, tuple(range(inputs[i].ndim))) for i in work.roles.params}
    for graph in work.graph.graphs():
        for node in graph:
            if node.op in _KEEP and node.operands[0] in found and len(node.results) == 1:
                position, places = found[node.operands[0]]
                order = node.params["permutation"] if node.op == "transpose" else range(len(places))
                found[node.results[0]] = (position, tuple(places[dim] for dim in order))
            for slot in slots(node) if node.regions else ():
                if slot.operand is None or slot.kind in ("carry", "opaque"):
                    continue
                value = node.operands[slot.operand]
                if value in found:
                    position, places = found[value]
                    inner = places[1:] if slot.kind == "scanned" else places
                    found.update((node.regions[r].inputs[i], (position, inner)) for r, i in slot.inputs)
    return found
