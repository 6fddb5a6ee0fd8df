"""Writes a loop over layers in front of the loop over time that had it in its body."""

from __future__ import annotations

from typing import Any

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.ir.regions import erase_dead_nodes
from lepton_jax.passes.loops._interchange.exchange import Plan, Role, over_layers
from lepton_jax.passes.loops._interchange.stack import Stack
from lepton_jax.passes.loops._parts.piece import cut, once
from lepton_jax.passes.loops._parts.scan import (
    Scan,
    add_scanned,
    drop_carry,
    drop_unread,
    read_outside,
    stacked_like,
    write_batched,
)
from lepton_jax.passes.loops._recurrence.solve import history
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import Rewrite, write_before

Outer = dict[Value, tuple[Value, bool]]
"""Of values of the body what they are outside, and whether that has one for each time."""


def exchanged(stack: Stack, outer: Outer) -> Rewrite:
    """The two loops, the other way round.

    Args:
        outer: what the layers' operands are outside.
    """
    time, layers = stack.time, stack.layers
    piece, leaves = cut(layers.body, layers.body.outputs)
    operands = dict(zip(layers.body.inputs, layers.node.operands, strict=True))
    arrays: list[Value] = []
    roles: list[Role] = []

    def read(kind: Any, value: Value) -> None:
        roles.append((kind, len(arrays)))
        arrays.append(value)

    for leaf in leaves:
        state = stack.state_of(operands[leaf]) if leaf in layers.scanned else None
        if leaf.is_const:
            read("fixed", leaf)
        elif leaf in layers.carries:
            roles.append(("carry", layers.carries.index(leaf)))
        elif state is not None:
            roles.append(("state", state))
        else:
            value, timed = outer[operands[leaf]]
            kinds = ("layered", "both") if leaf in layers.scanned else ("fixed", "timed")
            read(kinds[timed], value)
    first = [outer[v] for v in layers.init]
    plan = Plan(
        piece=piece,
        roles=tuple(roles),
        handed=tuple(timed for _, timed in first),
        states=tuple(state.output for state in stack.states),
        sums=tuple(state.total for state in stack.states),
        orders=tuple(state.order for state in stack.states),
        wanted=stack.wanted,
        length=time.length,
        layers=layers.length,
        reverse=time.node.params["reverse"],
        layers_reverse=layers.node.params["reverse"],
        unroll=time.node.params["unroll"],
        layers_unroll=layers.node.params["unroll"],
    )
    states = [time.init[state.position] for state in stack.states]
    return rewrite(over_layers, *(value for value, _ in first), *states, *arrays, plan=plan)


def outer_operands(stack: Stack, rule: str) -> Outer:
    """What the operands of the loop over layers are outside; what is computed of them is written there."""
    time = stack.time
    found, fixed, varying = _operands(stack)
    if fixed:
        piece, leaves = cut(time.body, fixed)
        values = write_before(rewrite(once, *time.fed(leaves)[0], piece=piece), time.node, rule)
        found |= {v: (value, False) for v, value in zip(fixed, values, strict=True)}
    if varying:
        piece, leaves = cut(time.body, varying)
        stacked = write_batched(time, piece, leaves, rule)
        found |= {v: (value, True) for v, value in zip(varying, stacked, strict=True)}
    return found


def like_outer_operands(stack: Stack) -> Outer:
    """Values like those that `outer_operands` gives, without anything being written."""
    found, fixed, varying = _operands(stack)
    avals = [v.aval for v in fixed] + [stacked_like(stack.time.node, v) for v in varying]
    inputs = Graph("operands", avals).inputs
    return found | {v: (each, v in varying) for v, each in zip([*fixed, *varying], inputs, strict=True)}


def _operands(stack: Stack) -> tuple[Outer, list[Value], list[Value]]:
    """What the operands are outside, those that are computed once, and those for each time."""
    time = stack.time
    found: Outer = {}
    made: tuple[list[Value], list[Value]] = [], []
    for value in dict.fromkeys(stack.layers.node.operands):
        if value.is_const:
            found[value] = value, False
        elif value in time.outer:
            found[value] = time.outer[value], value in time.scanned
        elif stack.state_of(value) is None:
            made[bool(stack.depends[value])].append(value)
    return found, *made


def put_outside(stack: Stack, made: Rewrite, rule: str) -> None:
    """Write the loops before the loop over time, which keeps what else it does."""
    node, layers = stack.time.node, stack.layers.node
    outputs = iter(write_before(made, node, rule))
    known = {v: next(outputs) for v in layers.results[: len(stack.layers.carries)]}
    last = {state: next(outputs) for state in stack.states}
    known |= {layers.results[place]: value for place, value in zip(stack.wanted, outputs, strict=True)}
    after = {state: known.get(layers.results[state.output]) for state in stack.states}
    returned = list(stack.time.body.outputs)
    for state in stack.states:
        node.results[state.position].replace_uses(last[state])
        returned[state.position] = state.carry
    stack.time.body.set_outputs(returned)
    for value, outer in known.items():
        read_outside(node, value, outer)
    erase_dead_nodes(stack.time.body)
    for state in sorted(stack.states, key=lambda state: state.position, reverse=True):
        _give_up(stack, state.carry, after[state])
    drop_unread(node)


def _give_up(stack: Stack, carry: Value, after: Value | None) -> None:
    """Hand a state on no longer.

    Args:
        after: the states after all times, if they are needed.
    """
    node = stack.time.node
    scan = Scan(node)
    position = scan.carries.index(carry)
    if len(carry.uses) > 1:
        assert after is not None
        made = rewrite(_before, after, scan.init[position], reverse=node.params["reverse"])
        (before,) = write_before(made, node, "shifted-carry")
        carry.replace_uses(add_scanned(node, before, carry))
    drop_carry(node, position)


def _before(after: Any, init: Any, *, reverse: bool) -> Any:
    return history(after, init, reverse=reverse)[1]
