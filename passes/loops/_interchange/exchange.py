"""A loop over time around a loop over layers, as a loop over layers around a loop over time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jax import lax

from lepton_jax.passes.loops._parts.piece import Piece

Role = tuple[Literal["fixed", "timed", "layered", "both", "state", "carry"], int]
"""How a step reads an argument: the same always, for each time, for each layer, for each of both (with the
number of the array), or as a state or as what the layers hand on (with its number)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the two loops do; hashable, so that their trace is reused.

    Attributes:
        piece: a layer at one time.
        roles: of its arguments.
        handed: whether each of what the layers hand on starts with a value for each time.
        states: of each state the output that is its next value.
        sums: whether that output is added to the state.
        orders: the order of a state's axes in which that of the layers comes first.
        wanted: outputs that are read for all times and layers.
        length: how many times there are.
        layers: how many layers there are.
        reverse: whether times run backwards.
        layers_reverse: whether layers do.
        unroll: of the loop over time.
        layers_unroll: of the loop over layers.
    """

    piece: Piece
    roles: tuple[Role, ...]
    handed: tuple[bool, ...]
    states: tuple[int, ...]
    sums: tuple[bool, ...]
    orders: tuple[tuple[int, ...], ...]
    wanted: tuple[int, ...]
    length: int
    layers: int
    reverse: bool
    layers_reverse: bool
    unroll: Any
    layers_unroll: Any


def over_layers(*args: Any, plan: Plan) -> list[Any]:
    """Layer by layer, each for all times.

    Args:
        args: what the layers hand on at first, (length, ...) or (...); the states at first, with an axis
            for the layers; then the arrays that steps read: (...), (length, ...), (layers, ...) or
            (length, layers, ...).

    Returns:
        What the last layer hands on, (length, ...); the states in the end; and the outputs that
        are wanted, (length, layers, ...).
    """
    first, states, arrays = _parted(args, len(plan.handed), len(plan.states))
    sequences = [
        x if timed else lax.broadcast(x, (plan.length,)) for x, timed in zip(first, plan.handed, strict=True)
    ]
    states = [jnp.transpose(h, order) for h, order in zip(states, plan.orders, strict=True)]
    timed = {i: arrays[i] for kind, i in plan.roles if kind == "timed"}
    layered = {i: arrays[i] for kind, i in plan.roles if kind == "layered"}
    both = {i: jnp.moveaxis(arrays[i], 1, 0) for kind, i in plan.roles if kind == "both"}

    def layer(sequences: list[Any], slices: Any) -> tuple[list[Any], Any]:
        states, layered, both = slices

        def step(states: list[Any], now: Any) -> tuple[list[Any], Any]:
            handed, timed = now
            found = {"fixed": arrays, "timed": timed, "layered": layered, "both": timed}
            found |= {"state": states, "carry": handed}
            outputs = plan.piece(*(found[kind][i] for kind, i in plan.roles))
            after = [outputs[i] for i in plan.states]
            after = [h + x if s else x for h, x, s in zip(states, after, plan.sums, strict=True)]
            return after, (outputs[: len(handed)], [outputs[i] for i in plan.wanted])

        states, (sequences, wanted) = lax.scan(
            step,
            states,
            (sequences, timed | both),
            length=plan.length,
            reverse=plan.reverse,
            unroll=plan.unroll,
        )
        return sequences, (states, wanted)

    sequences, (states, wanted) = lax.scan(
        layer,
        sequences,
        (states, layered, both),
        length=plan.layers,
        reverse=plan.layers_reverse,
        unroll=plan.layers_unroll,
    )
    states = [jnp.transpose(h, _inverse(order)) for h, order in zip(states, plan.orders, strict=True)]
    return [*sequences, *states, *(jnp.moveaxis(x, 0, 1) for x in wanted)]


def _inverse(order: tuple[int, ...]) -> list[int]:
    """The permutation that undoes another."""
    return [order.index(axis) for axis in range(len(order))]


def _parted(args: tuple[Any, ...], *sizes: int) -> Iterator[list[Any]]:
    """Parts of so many arguments, and the rest."""
    for size in sizes:
        yield list(args[:size])
        args = args[size:]
    yield list(args)
