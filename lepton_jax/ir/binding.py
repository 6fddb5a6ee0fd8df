"""Binding time: what depends on some of the inputs alone, and so can be computed once."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from jax.ad_checkpoint import checkpoint_name

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import Slot, slots

_STORED: Final = "lepton.stored"
_UNNAMED: Final = "lepton.unnamed"

# Operations whose result may be another each time, although JAX gives them no effect.
_UNREPEATABLE: Final = frozenset({"pure_callback", "rng_uniform", "infeed", "recv"})


def store(x: Any) -> Any:
    """The array itself, marked: where it depends on parameters alone, it is what is kept of them.

    What is computed from it is computed at each call, though it could be computed before: a decoder
    that expands packed weights stands after the mark.

    Args:
        x: an array of any shape and dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> store(jnp.arange(3)).shape
        (3,)
    """
    return checkpoint_name(x, _STORED)


def is_stored(node: Node) -> bool:
    """Whether a node is the mark of `store`."""
    return node.op == "name" and node.params.get("name") == _STORED


def unnamed(x: Any) -> Any:
    """The array itself, marked: what is made of it does not count as made of the parameters behind it.

    A weight whose mask or scale depends on other weights, or on what calibration saw, is a form of its own
    parameter alone.

    Args:
        x: an array of any shape and dtype, that is read along with parameters.
    """
    return checkpoint_name(x, _UNNAMED)


def is_unnamed(node: Node) -> bool:
    """Whether a node is the mark of `unnamed`."""
    return node.op == "name" and node.params.get("name") == _UNNAMED


def binding_time(graph: Graph, params: Collection[int]) -> frozenset[Value]:
    """The values that depend on nothing but the given inputs and on constants.

    Args:
        graph: the program.
        params: positions among its inputs.

    Returns:
        The values, constants and those of regions included. A value of a loop's body may
        differ from one iteration to the next: a slice of stacked parameters depends on the
        parameters alone. Results of a branch or a while loop also depend on the predicate.
        What has an effect, reads a mutable reference or calls back to the host does not
        belong to them, nor what is made of a value that `store` has marked; JAX's random numbers
        are functions of their key and do.

    Raises:
        IndexError: there is no such input.
    """
    for position in params:
        if not 0 <= position < len(graph.inputs):
            raise IndexError(f"{graph.name} has {len(graph.inputs)} inputs, there is none at {position}")
    return _Binding(graph, params).run()


def may_run_once(node: Node) -> bool:
    """Whether a node gives the same results each time it is given the same operands."""
    if node.effects or any(not _jax.is_array_aval(v.aval) for v in (*node.operands, *node.results)):
        return False
    inner = (each for region in node.regions for each in region.walk())
    return node.op not in _UNREPEATABLE and not any(each.op in _UNREPEATABLE for each in inner)


Sources = dict[Value, frozenset[int]]
"""Values that depend on parameters and constants alone, and the parameters that each depends on."""


def parameters_of(
    graph: Graph, params: Collection[int], *, named: bool = False, shards: bool = False
) -> Sources:
    """The values that are made of parameters and constants, regions included, and of which parameters.

    As `binding_time`, without what loops hand on.

    Args:
        graph: the program.
        params: positions among its inputs.
        named: leave out the parameters behind what `unnamed` has marked.
        shards: look into `shard_map`s too, where a value may differ from device to device.

    Returns:
        For each value the positions of the parameters that it depends on, none for what is made of constants.
    """
    found: Sources = {graph.inputs[i]: frozenset((i,)) for i in params}
    _enter(graph, found, named, shards)
    return found


def _enter(graph: Graph, found: Sources, named: bool, shards: bool) -> None:
    for node in graph:
        if note_early(node, found, named) or not node.own_regions():
            continue
        for index, region in enumerate(node.regions):
            found.update(early_inputs(node, index, found, shards))
            _enter(region, found, named, shards)


def note_early(node: Node, found: Sources, named: bool = False) -> bool:
    """Whether all results of a node are early; they are added if so.

    Args:
        named: as in `parameters_of`.
    """
    if is_stored(node) or not all(v.is_const or v in found for v in node.operands) or not may_run_once(node):
        return False
    sources = frozenset[int]().union(*(found[v] for v in node.operands if not v.is_const))
    if named and is_unnamed(node):
        sources = frozenset()
    found.update((v, sources) for v in node.results)
    return True


def early_inputs(node: Node, index: int, found: Sources, shards: bool = False) -> Sources:
    """The inputs of one of a node's regions that hold an early operand, or a slice of one.

    Args:
        shards: those of a `shard_map` too, which hold shards.
    """
    inside: Sources = {}
    if shards and node.op == "shard_map":
        pairs = zip(node.regions[index].inputs, node.operands, strict=True)
        early = ((v, operand) for v, operand in pairs if operand.is_const or operand in found)
        return {v: found.get(operand, frozenset()) for v, operand in early}
    for slot in slots(node):
        if slot.operand is None or slot.kind not in ("constant", "argument", "scanned"):
            continue
        operand = node.operands[slot.operand]
        if operand.is_const or operand in found:
            inputs = (node.regions[r].inputs[i] for r, i in slot.inputs if r == index)
            inside.update((v, found.get(operand, frozenset())) for v in inputs)
    return inside


class _Binding:
    """Marks what is late; all else is early. Marks only grow, so a worklist reaches the end."""

    def __init__(self, graph: Graph, params: Collection[int]) -> None:
        self.graphs = graph.graphs()
        self.late: set[Value] = set()
        self.work: list[Value] = []
        self.into: dict[Node, dict[int, Slot]] = {}
        self.out: dict[Value, list[tuple[Node, Slot]]] = {}
        early = set(params)
        self.mark(value for i, value in enumerate(graph.inputs) if i not in early)

    def run(self) -> frozenset[Value]:
        for graph in self.graphs:
            for node in graph:
                self.seed(node)
        while self.work:
            value = self.work.pop()
            for node, position in value.uses:
                self.enter(node, position)
            for node, slot in self.out.get(value, ()):
                self.leave(node, slot)
        return frozenset(self.values()) - self.late

    def values(self) -> Iterable[Value]:
        for graph in self.graphs:
            yield from graph.inputs
            for node in (*graph, graph.ret):
                yield from (value for value in node.operands if value.is_const)
                yield from node.results

    def mark(self, values: Iterable[Value]) -> None:
        for value in values:
            if value not in self.late:
                self.late.add(value)
                self.work.append(value)

    def seed(self, node: Node) -> None:
        """Mark what is late of itself, and note how regions are tied to the node."""
        found = slots(node) if node.regions else []
        fixed = not found or any(slot.kind == "opaque" for slot in found)
        references = any(not _jax.is_array_aval(value.aval) for value in (*node.operands, *node.results))
        if (fixed and node.effects) or node.op in _UNREPEATABLE or references or is_stored(node):
            self.mark(node.results)
        for slot in found:
            if slot.operand is not None:
                self.into.setdefault(node, {})[slot.operand] = slot
            for r, i in slot.outputs:
                self.out.setdefault(node.regions[r].outputs[i], []).append((node, slot))

    def enter(self, node: Node, position: int) -> None:
        """A late value is read."""
        if not node.regions:
            self.mark(node.results)
            return
        slot = self.into[node][position]
        self.mark(node.regions[r].inputs[i] for r, i in slot.inputs)
        if slot.result is not None:
            self.mark([node.results[slot.result]])
        if slot.kind == "predicate":
            self.mark(node.results)
        if slot.kind == "opaque":
            self.mark(node.results)
            self.mark(value for region in node.regions for value in region.inputs)

    def leave(self, node: Node, slot: Slot) -> None:
        """A late value is returned by a region."""
        if slot.kind in ("predicate", "opaque"):
            self.mark(node.results)
            return
        self.mark(node.regions[r].inputs[i] for r, i in slot.inputs)
        if slot.result is not None:
            self.mark([node.results[slot.result]])
