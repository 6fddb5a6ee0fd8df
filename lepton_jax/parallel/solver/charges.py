"""What a search is told besides what its labels cost: what XLA does otherwise, and what must stay shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from lepton_jax.ir._cost.leaves import leaf_cost
from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.prediction import Prediction
from lepton_jax.parallel.resharding import reshard
from lepton_jax.parallel.solver.model import Model
from lepton_jax.parallel.solver.problem import Floats
from lepton_jax.parallel.solver.tables import nbytes
from lepton_jax.parallel.strategies import cheapest

SPARE: Final = 0.05
"""How much more a device may compute than in the fastest layouts."""


def corrected(model: Model, chosen: Sequence[int]) -> int:
    """Charge for what the partitioner does otherwise than these labels say; returns for how many operations.

    It splits each axis as most of an operation's arrays are split, even where that moves more. What it
    moves more is charged to the chosen strategy together with the layout of the array that speaks against
    it.
    """
    count = 0
    for op, variable, ways in model.ways:
        assert op.node is not None
        way = ways[chosen[variable]]
        values = [
            *(model.flat.numbers[v] for v in op.node.operands),
            *(model.flat.numbers[v] for v in op.node.results),
        ]
        lies = [model.layout(value, chosen).complete() for value in values]
        operands = len(op.node.operands)
        taken, moves = cheapest(op.node, lies[:operands], lies[operands:], model.mesh)
        if taken.axes == way.axes:
            continue
        meant = [*way.operands, *way.results]
        avals = [model.sent[value] for value in values]
        before = [*lies[:operands], *way.results]
        after = [*way.operands, *lies[operands:]]
        meant_moves = [
            each
            for aval, have, want in zip(avals, before, after, strict=True)
            for each in reshard(aval, have, want, model.mesh, even=True)
        ]
        cost = model.objective.of(meant_moves, model.mesh)
        more = (model.objective.of(moves, model.mesh) - cost) * op.times
        against = [
            n for n, (have, want) in enumerate(zip(lies, meant, strict=True)) if have.dims != want.dims
        ]
        against = [n for n in against if values[n] in model.of_value]
        if more <= 1e-9 or not against:
            continue
        against.sort(key=lambda n: -nbytes(avals[n]))
        _charge(model, chosen, variable, values[against[0]], more)
        count += 1
    return count


def taken_apart(model: Model, chosen: Sequence[int], predicted: Prediction) -> int:
    """Charge for gathers and scatters that XLA takes apart; returns how many.

    While it multiplies, XLA for TPUs sends the parts on one by one, some of them once more than a collective
    would (`prediction.windows`).
    """
    known = {op.node: (op, variable) for op, variable, _ in model.ways}
    count = 0
    for move in predicted.moves:
        each = move.collective
        if each.kind != "collective-permute" or move.node not in known:
            continue
        op, variable = known[move.node]
        if each.times == op.times or (value := model.flat.numbers[move.value]) not in model.of_value:
            continue
        meant = replace(each, kind="reduce-scatter", times=op.times)
        more = model.objective.of([each], model.mesh) - model.objective.of([meant], model.mesh)
        if more > 0:
            i, j, table = _charge(model, chosen, variable, value, more)
            if move.ahead or move.after:
                model.soft.note(i, j, table, ahead=move.ahead)
            count += 1
    return count


def _charge(
    model: Model, chosen: Sequence[int], variable: int, value: int, more: float
) -> tuple[int, int, Floats]:
    """Let the chosen strategy together with the layout of a value cost so much more."""
    other = model.variable[model.of_value[value]]
    layouts = model.layouts(value)
    mine = layouts.index == layouts.index[chosen[other]]
    table = np.zeros((len(model.problem.costs[variable]), len(mine)))
    table[chosen[variable], mine] = more
    model.problem.add(variable, other, table)
    return variable, other, table


def keep_shared(model: Model, assignment: Mapping[Value, Layout]) -> None:
    """Forbid strategies that split a product less than some layouts do.

    What every device computes whole sends nothing: without this the fewest bytes would be none. Products are
    free that together, all of them whole, are no more than `SPARE` of what a device computes.

    Args:
        model: whose labels are forbidden.
        assignment: the layouts.
    """
    known = []
    for op, variable, ways in model.ways:
        assert op.node is not None
        share = _share(op.node, assignment, model)
        known.append((leaf_cost(op.node).flops * op.times, share, variable, [way.share for way in ways]))
    spare = SPARE * sum(flops * share for flops, share, _, _ in known)
    for flops, share, variable, shares in sorted(known, key=lambda each: each[0]):
        spare -= flops * (1.0 - share)
        if spare < 0:
            most = max(share, min(shares)) * (1 + 1e-9)
            model.problem.costs[variable] = model.problem.costs[variable] + np.where(
                np.array(shares) > most, np.inf, 0.0
            )


def _share(node: Node, assignment: Mapping[Value, Layout], model: Model) -> float:
    """What of a node each device computes under some layouts."""
    before, after = (
        [assignment.get(value, Layout.whole(value.ndim)).complete() for value in values]
        for values in (node.operands, node.results)
    )
    return cheapest(node, before, after, model.mesh)[0].share
