"""Which values of a program have the examples of the batch, which add them up, which wait for the sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from lepton_jax.ir.cost import bytes_of
from lepton_jax.ir.cutting.cut import where
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import Slot, slots
from lepton_jax.parallel.factors import Factors, factors_of
from lepton_jax.parallel.microbatches.leaves import results
from lepton_jax.parallel.microbatches.states import (
    INDEXING,
    LATE,
    Factor,
    Late,
    MicrobatchError,
    Part,
    Split,
    State,
    Sum,
    by_number,
    mixes,
    needs_all,
)
from lepton_jax.parallel.microbatches.zeros import is_zero

_CLOSED: Final = frozenset({"shard_map", "custom_linear_solve", "jit"})
_CUSTOM: Final = frozenset({"custom_jvp_call", "custom_vjp_call"})
_EXPENSIVE: Final = frozenset(
    {"dot_general", "ragged_dot_general", "conv_general_dilated", "sort", "top_k", "approx_top_k", "fft"}
)


class Flow:
    """The states of all values of a program, regions too.

    Attributes:
        states: of the values that depend on the batch.
        early: sums over the batch that are cheap enough to be computed whole, before the loop.
    """

    def __init__(self, graph: Graph, given: Mapping[Value, Part], split: Split) -> None:
        self.graph, self.given, self.split = graph, given, split
        self.early: set[Value] = set()
        self._starting: set[Value] = set()
        self.states: dict[Value, State] = {}
        self._largest = sum(bytes_of(value) for value in given)
        while True:
            self.states = dict(given)
            conflict = self._top()
            if conflict is None:
                return
            node, finished = conflict
            sums = self._cheap_sums(finished)
            if not sums or sums <= self.early:
                raise mixes(node, finished)
            self.early |= sums

    def of(self, value: Value) -> State:
        """The state of a value."""
        return None if value.is_const else self.states.get(value)

    def factor(self, node: Node, factors: Factors, known: Mapping[int, Part]) -> Factor | None:
        """The factor that has the examples, given the operands that have them; None if there are none.

        Raises:
            MicrobatchError: examples meet one another, or the operation needs all of them.
        """
        found = {self.split.locate(node, factors, place, part) for place, part in known.items()}
        if len(found) > 1:
            raise by_number(node) if node.op in INDEXING else needs_all(node)
        return next(iter(found), None)

    def parts(self, node: Node) -> tuple[Factors, Factor | None]:
        """The factors of a node without regions, and which of them has the examples."""
        factors = factors_of(node)
        known = {i: s for i, v in enumerate(node.operands) if isinstance(s := self.of(v), Part)}
        return factors, self.factor(node, factors, known)

    # The program itself

    def _top(self) -> tuple[Node, Value] | None:
        """Go through the program; returns an operation that mixes examples and finished sums, if one does."""
        for node in self.graph:
            kinds = [self.of(value) for value in node.operands]
            has_part = any(isinstance(kind, Part) for kind in kinds)
            sums = [v for v, kind in zip(node.operands, kinds, strict=True) if isinstance(kind, (Sum, Late))]
            if not has_part and not sums:
                continue
            if has_part and sums:
                return node, sums[0]
            if has_part:
                found = self._with_regions(node) if node.regions else self._leaf(node)
            else:
                found = [self._of_sums(node, kinds)] * len(node.results)
            for value, state in zip(node.results, found, strict=True):
                self.states[value] = None if value in self.early else state
        return None

    def _of_sums(self, node: Node, kinds: Sequence[State]) -> State:
        """The state of what is computed of sums: another sum where the operation is linear in them."""
        if node.regions or node.effects or node.op in _EXPENSIVE:
            return LATE
        if any(isinstance(kind, Late) for kind in kinds):
            return LATE
        return self._linear(node, kinds) or LATE

    def _linear(self, node: Node, kinds: Sequence[State]) -> Sum | None:
        summed = frozenset(i for i, kind in enumerate(kinds) if isinstance(kind, Sum))
        if any(kinds[i] != Sum("add") for i in summed):
            return None
        linear = factors_of(node).linear
        zeros = frozenset(i for i, v in enumerate(node.operands) if self._is_zero(v))
        return Sum("add") if summed in linear or summed | (zeros - summed) in linear else None

    def _cheap_sums(self, finished: Value) -> set[Value]:
        """The sums that a value waits for, if they take no products and no arrays larger than the batch."""
        seen: set[Node] = set()
        sums: set[Value] = set()
        stack = [finished]
        while stack:
            node = stack.pop().node
            if node is None or node in seen or not any(self.of(each) for each in node.results):
                continue
            seen.add(node)
            if node.regions or node.effects or node.op in _EXPENSIVE:
                return set()
            if any(bytes_of(each) > self._largest for each in node.results):
                return set()
            if any(isinstance(self.of(each), Part) for each in node.operands):
                sums.update(each for each in node.results if isinstance(self.of(each), Sum))
            stack += node.operands
        return sums

    # One operation

    def _leaf(self, node: Node) -> list[State]:
        if node.effects:
            raise needs_all(node)
        factors, factor = self.parts(node)
        assert factor is not None
        return results(node, factors, factor, self.split)

    # Operations with regions

    def _with_regions(self, node: Node) -> list[State]:
        if node.effects or node.op in _CLOSED or not node.own_regions():
            raise needs_all(node)
        connections = slots(node)
        if any(slot.kind == "opaque" for slot in connections):
            raise needs_all(node)
        carried = self._settled(node, connections)
        found: list[State] = [None] * len(node.results)
        for slot in connections:
            state = carried[slot] if slot in carried else self._leaving(node, slot)
            if slot.kind == "predicate" and (state or self._outside(node, slot)) is not None:
                raise needs_all(node)
            if slot.result is not None:
                found[slot.result] = state
        if node.op in _CUSTOM and any(isinstance(state, Sum) for state in found):
            raise needs_all(node)
        return found

    def _settled(self, node: Node, connections: Sequence[Slot]) -> dict[Slot, State]:
        """The states of what a loop carries, and in passing of all in its regions.

        What begins with zeros may turn out to be a sum; if it does not, going through once more says so.
        """
        carried = {slot: self._outside(node, slot) for slot in connections if slot.kind == "carry"}
        starting = {
            node.regions[r].inputs[i]
            for slot, state in carried.items()
            if state is None and slot.operand is not None and self._is_zero(node.operands[slot.operand])
            for r, i in slot.inputs
        }
        self._starting |= starting
        while True:
            for slot in connections:
                state = carried[slot] if slot in carried else self._entering(node, slot)
                for r, i in slot.inputs:
                    self._set(node.regions[r].inputs[i], state)
            for region in node.regions:
                self._region(region)
            grown = {slot: self._carried(node, slot, state) for slot, state in carried.items()}
            if grown == carried:
                break
            carried = grown
        self._starting -= starting
        for region in node.regions if starting else ():
            self._region(region)
        return carried

    def _is_zero(self, value: Value) -> bool:
        return is_zero(value, self._starting)

    def _set(self, value: Value, state: State) -> None:
        if state is None:
            self.states.pop(value, None)
        else:
            self.states[value] = state

    def _region(self, region: Graph) -> None:
        for node in region:
            kinds = [self.of(value) for value in node.operands]
            sums = [v for v, kind in zip(node.operands, kinds, strict=True) if isinstance(kind, Sum)]
            has_part = any(isinstance(kind, Part) for kind in kinds)
            found: list[State]
            if node.effects and (has_part or sums):
                raise needs_all(node)
            if not has_part and not sums:
                found = [None] * len(node.results)
            elif node.regions:
                found = self._with_regions(node)
            elif has_part and sums:
                raise mixes(node, sums[0])
            elif has_part:
                found = self._leaf(node)
            else:
                state = self._linear(node, kinds)
                if state is None:
                    raise mixes(node, sums[0])
                found = [state] * len(node.results)
            for value, each in zip(node.results, found, strict=True):
                self._set(value, each)

    def _outside(self, node: Node, slot: Slot) -> State:
        return None if slot.operand is None else self.of(node.operands[slot.operand])

    def _entering(self, node: Node, slot: Slot) -> State:
        """The state of what a region is given, that is no carry."""
        state = self._outside(node, slot)
        if slot.kind != "scanned" or not isinstance(state, Part):
            return state
        if state.dim == 0:
            raise MicrobatchError(
                f"{node.op} goes along the batch ({where(node)}): the program cannot be computed in parts of "
                "it"
            )
        return Part(state.dim - 1, state.outer)

    def _leaving(self, node: Node, slot: Slot) -> State:
        """The state of what regions return, that is no carry."""
        state: State = None
        for r, i in slot.outputs:
            state = self._joined(node, state, node.regions[r].outputs[i])
        for r, i in slot.outputs:
            self._check(node, state, node.regions[r].outputs[i])
        if slot.kind == "stacked" and isinstance(state, Part):
            return Part(state.dim + 1, state.outer)
        return state

    def _carried(self, node: Node, slot: Slot, state: State) -> State:
        """The state of a carry after one more round."""
        for r, i in slot.outputs:
            state = self._joined(node, state, node.regions[r].outputs[i])
        assert slot.operand is not None
        self._check(node, state, node.operands[slot.operand])
        for r, i in slot.outputs:
            if isinstance(state, Sum) and state == self.of(node.regions[r].inputs[slot.inputs[0][1]]):
                self._check(node, state, node.regions[r].outputs[i])
        return state

    def _joined(self, node: Node, state: State, value: Value) -> State:
        other = self.of(value)
        if state is not None and other is not None and state != other:
            raise needs_all(node)
        return other if state is None else state

    def _check(self, node: Node, state: State, value: Value) -> None:
        """See that a value is of this state, or can be made so: of sums zeros, of parts what divides."""
        other = self.of(value)
        if state == other:
            return
        if other is None and isinstance(state, Sum) and state.how == "add" and is_zero(value):
            return
        if other is None and isinstance(state, Part) and self.split.divides(value, state):
            return
        raise mixes(node, value) if isinstance(other, Sum) else needs_all(node)
