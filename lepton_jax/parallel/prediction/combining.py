"""Collectives that XLA runs as one: sums that nothing waits for, as those of the gradients of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.prediction.events import Move

COMBINED: Final = ("all-reduce", "reduce-scatter")


def combined(moves: Sequence[Move]) -> list[Move]:
    """The moves, those combined that XLA combines: of one kind, over the same axes, equally often.

    The bytes of all together stay the same. What is combined stands where the last of it stood.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, move in enumerate(moves):
        each = move.collective
        if move.after and each.kind in COMBINED:
            groups.setdefault((each.kind, each.axes, each.times), []).append(i)
    gone = {i for places in groups.values() for i in places[:-1]}
    last = {places[-1]: places for places in groups.values()}
    found = []
    for i, move in enumerate(moves):
        if i in gone:
            continue
        if i in last and len(last[i]) > 1:
            move = replace(move, collective=_joined([moves[place].collective for place in last[i]]))
        found.append(move)
    return found


def _joined(parts: Sequence[Collective]) -> Collective:
    what = f"{len(parts)} arrays: {parts[0].what}, …, {parts[-1].what}"
    return replace(parts[0], bytes=sum(each.bytes for each in parts), what=what)
