"""All values that hold one cache: from where it begins, through its writes, loops, branches and moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import jax.numpy as jnp
from jax.lax import GatherScatterMode

from lepton_jax.ir.graph import RETURN, Node, Value
from lepton_jax.ir.regions import Slot, editable, slots
from lepton_jax.numerics.cache import ENCODED
from lepton_jax.passes.quantize._kv_cache.moves import Axes, is_mark, moved

_UPDATE: Final = {"dynamic_update_slice": 1, "scatter": 2}
"""Which operand is written."""


class RefusedError(Exception):
    """Why an array cannot be kept in codes."""


@dataclass(eq=False)
class Web:
    """The values that hold one cache or a part of it.

    Attributes:
        shared: of each, the axes along which all elements share a scale.
        writes: the operations that write to it.
        dots: the products that read it, and which operand it is.
        exits: what else reads it.
        marks: where it leaves the program in codes.
        carries: the loops that carry it.
        updates: the operations that write a part of it somewhere.
    """

    shared: dict[Value, Axes] = field(default_factory=dict)
    writes: list[Node] = field(default_factory=list)
    dots: list[tuple[Node, int]] = field(default_factory=list)
    exits: list[tuple[Node, int]] = field(default_factory=list)
    marks: list[Node] = field(default_factory=list)
    carries: list[tuple[Node, Slot]] = field(default_factory=list)
    updates: list[Node] = field(default_factory=list)
    _work: list[Value] = field(default_factory=list)

    def grow(self) -> None:
        """Follow every value to what is made of it.

        Raises:
            RefusedError: a value would have two kinds of scales, or a loop carries on something else.
        """
        while self._work:
            value = self._work.pop()
            for node, position in list(value.uses):
                self._enter(value, node, position)
        for node, slot in self.carries:
            if any(node.regions[r].outputs[i] not in self.shared for r, i in slot.outputs):
                raise RefusedError(f"a {node.op} puts another array in its place")
        for node in self.updates:
            position = _UPDATE[node.op]
            if node not in self.writes:
                self.exits.append((node, position))
            elif self.shared[node.operands[position]] != shared_in_update(
                node, self.shared[node.operands[0]]
            ):
                raise RefusedError("a part of it is written back in another form")

    def join(self, value: Value, shared: Axes) -> None:
        """Let a value be part of it.

        Raises:
            RefusedError: it would have two kinds of scales.
        """
        known = self.shared.get(value)
        if known is None:
            self.shared[value] = shared
            self._work.append(value)
        elif known != shared:
            raise RefusedError("it is read in two forms that would need different scales")

    def carried(self, node: Node, slot: Slot, shared: Axes) -> None:
        """Let what a loop carries be part of it."""
        if (node, slot) in self.carries:
            return
        self.carries.append((node, slot))
        assert slot.result is not None
        for r, i in slot.inputs:
            self.join(node.regions[r].inputs[i], shared)
        self.join(node.results[slot.result], shared)

    def _enter(self, value: Value, node: Node, position: int) -> None:
        shared = self.shared[value]
        if node.op == RETURN:
            self._leave(value, node, position)
        elif node.regions:
            self._into(value, node, position)
        elif is_mark(node, ENCODED):
            self.marks.append(node)
        elif node.op == "dot_general" and node.operands[1 - position] not in self.shared:
            self.dots.append((node, position))
        elif _writes(node, position, shared):
            self._write(node, shared)
        elif position == 0 and (after := moved(node, shared)) is not None:
            self.join(node.result, after)
        elif position == _UPDATE.get(node.op):
            self.updates.append(node)
        else:
            self.exits.append((node, position))

    def _write(self, node: Node, shared: Axes) -> None:
        if node not in self.writes:
            self.writes.append(node)
        self.join(node.result, shared)

    def _into(self, value: Value, node: Node, position: int) -> None:
        """Into the regions of a loop, a branch or a call."""
        slot = next((slot for slot in slots(node) if slot.operand == position), None)
        if slot is None or not editable(node) or slot.kind in ("opaque", "predicate"):
            self.exits.append((node, position))
            return
        shared = self.shared[value]
        if slot.kind == "carry":
            self.carried(node, slot, shared)
            return
        if slot.kind == "scanned":
            if 0 in shared:
                raise RefusedError("a scan goes along its features")
            shared = frozenset(axis - 1 for axis in shared)
        for r, i in slot.inputs:
            self.join(node.regions[r].inputs[i], shared)

    def _leave(self, value: Value, node: Node, position: int) -> None:
        """Out of a region, to the results of the node that runs it."""
        assert node.graph is not None
        parents, shared = node.graph.parents, self.shared[value]
        if len(parents) != 1 or not editable(parents[0]):
            self.exits.append((node, position))
            return
        (parent,) = parents
        place = (parent.regions.index(node.graph), position)
        slot = next(slot for slot in slots(parent) if place in slot.outputs)
        if slot.kind == "carry":
            self.carried(parent, slot, shared)
        elif slot.result is not None and slot.kind in ("stacked", "result"):
            shift = slot.kind == "stacked"
            self.join(parent.results[slot.result], frozenset(axis + shift for axis in shared))
        else:
            self.exits.append((node, position))


def _writes(node: Node, position: int, shared: Axes) -> bool:
    """Whether a node makes the next cache of one that it reads at a position."""
    if node.op == "select_n":
        return position > 0 and _chooses_whole(node, shared)
    return position == 0 and node.op in _UPDATE and _writes_whole(node, shared)


def _writes_whole(node: Node, shared: Axes) -> bool:
    """Whether whatever is written replaces everything that shares a scale."""
    operand, update = node.operands[0], node.operands[_UPDATE[node.op]]
    if not update.is_static or not jnp.issubdtype(update.dtype, jnp.floating):
        return False
    if node.op == "dynamic_update_slice":
        return all(update.shape[axis] == operand.shape[axis] for axis in shared)
    places = update_axes(node)
    return all(axis in places and update.shape[places[axis]] == operand.shape[axis] for axis in shared)


def shared_in_update(node: Node, shared: Axes) -> Axes:
    """The axes of what is written along which all elements share a scale."""
    if node.op == "dynamic_update_slice":
        return shared
    places = update_axes(node)
    return frozenset(places[axis] for axis in shared)


def update_axes(scatter: Node) -> dict[int, int]:
    """For the axes of the operand that a scatter writes as windows: those of the update.

    Those that it indexes too are left out, unless windows that are whole can only be at 0.
    """
    numbers = scatter.params["dimension_numbers"]
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    windows = [axis for axis in range(scatter.operands[0].ndim) if axis not in gone]
    pairs = zip(windows, map(int, numbers.update_window_dims), strict=True)
    moved = () if scatter.params["mode"] == GatherScatterMode.CLIP else numbers.scatter_dims_to_operand_dims
    return {axis: place for axis, place in pairs if axis not in moved}


def _chooses_whole(node: Node, shared: Axes) -> bool:
    """Whether a choice is the same for everything that shares a scale."""
    which = node.operands[0]
    if which.ndim == 0:
        return True
    source = which.node
    if source is None or source.op != "broadcast_in_dim":
        return False
    kept = {axis: source.operands[0].shape[i] for i, axis in enumerate(source.params["broadcast_dimensions"])}
    return all(kept.get(axis, 1) == 1 for axis in shared)
