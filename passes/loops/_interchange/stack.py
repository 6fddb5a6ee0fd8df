"""What a loop over time has to be for its loop over layers to go outside."""

from __future__ import annotations

from dataclasses import dataclass

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._parts.piece import makers
from lepton_jax.passes.loops._parts.scan import Scan, is_plain_scan
from lepton_jax.passes.loops._parts.worth import stuck

_SUMS = frozenset({"add", "add_any"})


@dataclass(frozen=True, slots=True)
class State:
    """A carry of the loop over time of which each layer hands its own row on.

    Attributes:
        carry: the input of the body.
        position: which carry it is.
        read: what the layers read of it: itself, or the transpose of it that has a row for each layer.
        order: the permutation that makes this transpose.
        output: which output of the layers' body the next rows are.
        total: whether these are added to the carry; otherwise they are the next carry themselves.
        back: the node that transposes or adds the next rows, if one does.
    """

    carry: Value
    position: int
    read: Value
    order: tuple[int, ...]
    output: int
    total: bool = False
    back: Node | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """A loop over time whose body has a loop over layers.

    Attributes:
        time: the loop over time.
        layers: the loop over layers in it.
        states: what each layer hands on to itself.
        wanted: outputs of the layers' body that are read for all times.
        depends: as `Scan.dependence` of the loop over time.
    """

    time: Scan
    layers: Scan
    states: tuple[State, ...]
    wanted: tuple[int, ...]
    depends: dict[Value, int]

    def state_of(self, value: Value) -> int | None:
        """The number of the state that a value of the body is."""
        return next((i for i, s in enumerate(self.states) if s.read is value), None)


def stack_of(time: Scan, node: Node) -> Stack | str | None:
    """How the layers of a loop in the body of another need one another over time; or why they may not.

    Returns:
        None where nothing is handed on to the same layer, so that this is not what the program does.
    """
    layers = Scan(node)
    states = [s for i in range(len(time.carries)) if (s := _state(time, layers, i)) is not None]
    if all(state.total for state in states):
        return None
    depends = time.dependence()
    carried = {state.read for state in states if not state.total}
    whole = len(node.operands) - len(layers.scanned)
    for place, operand in enumerate(node.operands):
        if operand.is_const or not depends[operand] >> 1:
            continue
        if operand not in carried:
            return "a layer needs more than its own state of the time before"
        if place < whole:
            return "a layer needs the states of others of the time before"
    before = makers([v for v in node.operands if v not in carried], lambda value: False)
    for each in before:
        reason = stuck(each)
        if reason is not None:
            return reason
    reason = stuck(node, branches=True)
    return reason or Stack(time, layers, tuple(states), _wanted(time, layers, states), depends)


def _wanted(time: Scan, layers: Scan, states: list[State]) -> tuple[int, ...]:
    """The outputs of layers that something besides the next states reads."""
    found = {
        place
        for place, value in enumerate(layers.node.results)
        if place >= len(layers.carries) and not all(_is_own(time, states, *use) for use in value.uses)
    }
    users = {layers.node, *(state.back for state in states), *(state.read.node for state in states)}
    found |= {state.output for state in states if any(user not in users for user, _ in state.carry.uses)}
    return tuple(sorted(found))


def _is_own(time: Scan, states: list[State], user: Node, place: int) -> bool:
    """Whether a use of a state's next value hands it on, and nothing more."""
    if user is time.body.ret:
        return any(state.position == place and state.back is None for state in states)
    return any(state.back is user for state in states)


def _state(time: Scan, layers: Scan, position: int) -> State | None:
    """The carry at a position as a state of the layers, if it is one."""
    carry, after = time.carries[position], time.next[position]
    back, order = after.node, tuple(range(carry.ndim))
    if back is layers.node:
        return _of_output(State(carry, position, carry, order, layers.node.results.index(after)), layers)
    if back is None or list(after.uses) != [(time.body.ret, position)]:
        return None
    readers = [user for user, _ in carry.uses]
    if back.op in _SUMS and readers == [back]:
        terms = [v for v in back.operands if v is not carry]
        if len(terms) != 1 or terms[0].node is not layers.node:
            return None
        place = layers.node.results.index(terms[0])
        return _of_output(State(carry, position, carry, order, place, True, back), layers)
    source = back.operands[0] if back.op == "transpose" else None
    if source is None or source.node is not layers.node or len(readers) != 1 or readers[0].op != "transpose":
        return None
    (turn,) = readers
    inverse, order = back.params["permutation"], tuple(turn.params["permutation"])
    if any(inverse[axis] != i for i, axis in enumerate(order)):
        return None
    if any(user is not layers.node for user, _ in turn.result.uses):
        return None
    place = layers.node.results.index(source)
    return _of_output(State(carry, position, turn.result, order, place, False, back), layers)


def _of_output(state: State, layers: Scan) -> State | None:
    """The state, if its next rows are stacked by the layers rather than handed on to the next one."""
    return state if state.output >= len(layers.carries) else None


def candidates(time: Scan) -> list[Node]:
    """The loops in a body that may be loops over layers, in order."""
    loops = [n for n in time.body if is_plain_scan(n) and n.params["length"] > 1]
    given = {*time.carries, *(v.result for c in time.carries for v, _ in c.uses if v.op == "transpose")}
    return [n for n in loops if n.params["num_carry"] and any(v in given for v in n.operands)]
