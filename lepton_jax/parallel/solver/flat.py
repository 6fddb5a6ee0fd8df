"""A program as the solver sees it: one list of operations, regions written out with how often they run.

Sums of several partial results (the gradients of queries, keys and values; a weight used twice) are given a
place where they may lie as parts of a sum, and arrays that several products read a place where they may lie
gathered, so that both are paid once. These places are *copies*: values that the program does not have.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import slots, trip_count
from lepton_jax.parallel.constraints import HINTS
from lepton_jax.parallel.factors import Factors, factors_of

_HEAVY: Final = ("dot_general", "ragged_dot", "conv_general_dilated", "gather", "scatter")


@dataclass(slots=True)
class Op:
    """One operation.

    Attributes:
        node: of the graph; None for a copy.
        factors: what goes together; of a copy nothing is asked.
        operands: the numbers of the values read.
        results: of the values made.
        times: how often it runs.
        heavy: whether how it is split is a decision of its own.
    """

    node: Node | None
    factors: Factors
    operands: list[int]
    results: list[int]
    times: int
    heavy: bool = False


@dataclass
class Flat:
    """The operations of a program and its regions.

    Attributes:
        avals: of each value, copies too.
        numbers: of the graph's values their number.
        ops: in program order.
        ties: pairs of values that lie alike, with which dimension is which.
        fixed: dimensions of values that are never split.
        sums: values that may lie as parts of a sum.
        held: values that something outside the operations reads: outputs of the graph and of regions.
    """

    avals: list[Any] = field(default_factory=list)
    numbers: dict[Value, int] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    ties: list[tuple[int, int, tuple[tuple[int, int], ...]]] = field(default_factory=list)
    fixed: set[tuple[int, int]] = field(default_factory=set)
    sums: set[int] = field(default_factory=set)
    held: set[int] = field(default_factory=set)

    def number(self, value: Value) -> int:
        """The number of a value of the graph."""
        known = self.numbers.get(value)
        if known is None:
            known = self.numbers[value] = len(self.avals)
            self.avals.append(value.aval)
        return known

    def copy_of(self, value: int, times: int, *, makes: bool) -> int:
        """A place that is filled from `value`, or from which `value` is filled if `makes`."""
        new = len(self.avals)
        self.avals.append(self.avals[value])
        pair = ([new], [value]) if makes else ([value], [new])
        self.ops.append(Op(None, Factors((), (), ()), *pair, times))
        return new


def flatten(graph: Graph, returned: Iterable[tuple[int, int]] = (), far: int | None = None) -> Flat:
    """The operations of a graph and its regions.

    Args:
        graph: with plain calls written into their callers.
        returned: pairs of an input and the output that is its next value: they lie alike.
        far: how many operations after it was read last what was gathered is gathered again; None: never.
    """
    flat = Flat()
    for value in graph.inputs:
        flat.number(value)
    _walk(graph, 1, flat)
    outputs = graph.outputs
    for i, o in returned:
        old, new = graph.inputs[i], outputs[o]
        if old.shape == new.shape and not new.is_const:
            _tie(flat, old, new, 0)
    _partial_sums(flat)
    _gathered_once(flat, far)
    return flat


def _walk(graph: Graph, times: int, flat: Flat) -> None:
    for node in graph:
        if node.regions and _opens(node):
            _loop(node, times, flat)
            continue
        operands = [flat.number(value) for value in node.operands]
        results = [flat.number(value) for value in node.results]
        if node.op in HINTS:  # its result lies as it says, its operand need not
            flat.ops.append(Op(None, Factors((), (), ()), operands, results, times))
            continue
        flat.ops.append(Op(node, factors_of(node), operands, results, times, node.op.startswith(_HEAVY)))
    flat.held.update(flat.number(value) for value in graph.outputs)


def _opens(node: Node) -> bool:
    """Whether what is in a node's regions lies as what is outside."""
    return all(slot.kind != "opaque" for slot in slots(node))


def _loop(node: Node, times: int, flat: Flat) -> None:
    """A node with regions: what flows through it lies alike outside and inside."""
    for slot in slots(node):
        outer = [node.operands[slot.operand]] if slot.operand is not None else []
        outer += [node.results[slot.result]] if slot.result is not None else []
        inner = [node.regions[r].inputs[i] for r, i in slot.inputs]
        inner += [node.regions[r].outputs[i] for r, i in slot.outputs]
        cut = 1 if slot.kind in ("scanned", "stacked") else 0
        if cut:
            flat.fixed.update((flat.number(value), 0) for value in outer)
        everything = [(value, cut) for value in outer] + [(value, 0) for value in inner]
        for (a, i), (b, j) in itertools.pairwise(everything):
            _tie(flat, a, b, j - i)
    for region in node.regions:
        _walk(region, times * max(trip_count(node), 1), flat)


def _tie(flat: Flat, a: Value, b: Value, shift: int) -> None:
    """Two values lie alike; dimension d of `a` is d + shift of `b`."""
    if a.ndim and b.ndim:
        pairs = tuple((d, d + shift) for d in range(a.ndim) if 0 <= d + shift < b.ndim)
        flat.ties.append((flat.number(a), flat.number(b), pairs))
    else:
        flat.number(a), flat.number(b)


def _readers(flat: Flat) -> dict[int, list[Op]]:
    found: dict[int, list[Op]] = defaultdict(list)
    for op in flat.ops:
        for value in dict.fromkeys(op.operands):
            found[value].append(op)
    return found


def _partial_sums(flat: Flat) -> None:
    """Find sums of several results that may be parts of sums, and let the sum be completed once."""
    summed: dict[int, Op] = {}  # by the value, who makes it
    tied = {number for a, b, _ in flat.ties for number in (a, b)} | flat.held
    for op in flat.ops:
        if (op.heavy and "add" in op.factors.reduced.values() and len(op.results) == 1) or (
            _keeps_sums(op, flat) and all(i in summed for i in op.operands if len(flat.avals[i].shape))
        ):
            summed[op.results[0]] = op
    readers = _readers(flat)
    kept = {value for value in summed if value not in tied}
    while True:  # those that only feed sums, or what keeps them on the way to one
        ends = {
            op.results[0] for op in summed.values() if not op.heavy and _adds(op) and _within(op, kept, flat)
        }
        good = {
            value
            for value in kept
            if all(
                not reader.heavy
                and reader.results[0] in summed
                and (reader.results[0] in ends or reader.results[0] in kept)
                and _within(reader, kept, flat)
                for reader in readers[value]
            )
            and readers[value]
        }
        if good == kept:
            break
        kept = good
    if not kept:
        return
    flat.sums |= kept
    for op in [op for op in flat.ops if not op.heavy and op.operands and op.operands[0] in kept]:
        (result,) = op.results
        if result not in kept:
            place = flat.copy_of(result, op.times, makes=True)
            flat.sums.add(place)
            op.results = [place]


def _keeps_sums(op: Op, flat: Flat) -> bool:
    """Whether it makes of parts of sums parts of the sum, with nothing else that is an array."""
    if op.node is None or op.heavy or len(op.results) != 1 or op.factors.reduced:
        return False
    arrays = frozenset(i for i, value in enumerate(op.operands) if flat.avals[value].shape)
    return bool(arrays) and arrays in op.factors.linear


def _adds(op: Op) -> bool:
    return len(set(op.operands)) > 1


def _within(op: Op, kept: set[int], flat: Flat) -> bool:
    return all(value in kept for value in op.operands if flat.avals[value].shape)


def _gathered_once(flat: Flat, far: int | None) -> None:
    """Give an array that several products read a place to lie as they want it, kept from one to the next."""
    clock = {id(op): n for n, op in enumerate(flat.ops)}
    for value, readers in _readers(flat).items():
        if not flat.avals[value].shape:
            continue
        near: list[Op] = []
        for op in [op for op in readers if op.heavy]:
            if near and (op.times != near[-1].times or (far and clock[id(op)] - clock[id(near[-1])] > far)):
                _share(flat, value, near)
                near = []
            near.append(op)
        _share(flat, value, near)


def _share(flat: Flat, value: int, readers: list[Op]) -> None:
    if len(readers) < 2:
        return
    place = flat.copy_of(value, readers[0].times, makes=False)
    for op in readers:
        op.operands = [place if each == value else each for each in op.operands]
