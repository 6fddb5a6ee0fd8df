"""From a program and a mesh to the problem of choosing layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from lepton_jax.ir._cost.leaves import leaf_cost
from lepton_jax.ir.cost import seconds
from lepton_jax.ir.graph import Node
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.opened import Opened, agrees
from lepton_jax.parallel.prediction.elements import FUSED
from lepton_jax.parallel.solver.choices import Label, label_of, labels_of, layout_of, real_axes
from lepton_jax.parallel.solver.flat import Flat, Op
from lepton_jax.parallel.solver.groups import Cluster, clusters
from lepton_jax.parallel.solver.model import Model
from lepton_jax.parallel.solver.objective import TIME, Objective
from lepton_jax.parallel.solver.problem import Floats, Problem
from lepton_jax.parallel.solver.tables import Tables, nbytes
from lepton_jax.parallel.strategies import strategies

_NONE: Final[Mapping[int, Opened]] = {}
_TIE: Final = 0.01


def build(
    flat: Flat,
    mesh: MeshSpec,
    pins: Mapping[int, Layout],
    held: Sequence[int] = (),
    hidden: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset()),
    opened: Mapping[int, Opened] = _NONE,
    objective: Objective = TIME,
) -> Model:
    """The problem of a program on a mesh.

    Args:
        flat: the program.
        mesh: the mesh.
        pins: the layouts that values must have, by number.
        held: values that are in memory all the time: the inputs.
        hidden: the values whose communication can be hidden; see `overlap.hideable`.
        opened: the axes of some dimensions of values, by number; None leaves a dimension free.
        objective: what its costs are.
    """
    alone: set[int] = set()
    while True:
        found, of_value = clusters(flat, alone)
        model = Model(Problem(), flat, mesh, of_value, given=hidden[0], late=hidden[1], objective=objective)
        clash = _label(model, found, pins, opened)
        if clash is None:
            break
        alone.add(clash)
    tables = Tables(mesh, objective)
    for op in flat.ops:
        _add(op, model, tables)
    for value in dict.fromkeys(held):
        if value in of_value:  # of layouts that cost the same the one that takes less memory
            lists = model.layouts(value)
            sizes = np.array([each.local_bytes(flat.avals[value], mesh) for each in lists.distinct])
            variable = model.variable[of_value[value]]
            spent = objective.second * _TIE * sizes / mesh.chip.rates.bytes_per_second
            model.problem.costs[variable] = model.problem.costs[variable] + spent[lists.index]
    return model


def _label(
    model: Model, found: Sequence[Cluster], pins: Mapping[int, Layout], opened: Mapping[int, Opened]
) -> int | None:
    """Give each cluster its labels; returns a pinned value that wants what its cluster does not allow."""
    names = real_axes(model.mesh)
    known: dict[tuple[Label, ...], list[Label]] = {}
    for cluster in found:
        labels = labels_of(cluster, model.mesh)
        for value in [value for value in cluster.values if value in pins]:
            wanted = pins[value]
            exact = label_of(cluster.groups[value], wanted, names)
            if exact is not None and exact not in labels and len(cluster.values) == 1:
                labels = [exact]
            left = [
                each for each in labels if layout_of(cluster.groups[value], each, names).dims == wanted.dims
            ]
            if not left and len(cluster.values) > 1:
                return value
            labels = left
            if not labels:
                raise ValueError(
                    f"a pin of an array of shape {model.flat.avals[value].shape} to {wanted} is not possible"
                )
        for value in [value for value in cluster.values if value in opened]:
            group = cluster.groups[value]
            left = [each for each in labels if agrees(layout_of(group, each, names), opened[value])]
            if not left and len(cluster.values) > 1:
                return value
            labels = left or labels
        labels = known.setdefault(tuple(labels), labels)
        model.labels[cluster] = labels
        model.variable[cluster] = model.problem.variable(len(labels), cluster)
    return None


def _add(op: Op, model: Model, tables: Tables) -> None:
    if op.node is None:
        (before,), (after,) = op.operands, op.results
        if before not in model.of_value:
            return
        table = tables.between(model.sent[before], model.layouts(before), model.layouts(after))
        table = table * op.times if op.times > 1 else table
        _couple(model, before, after, table)
        if before in model.given or after in model.late:
            i, j = (model.variable[model.of_value[value]] for value in (before, after))
            model.soft.note(i, j, table, ahead=before in model.given)
    elif op.heavy:
        _heavy(op, op.node, model, tables)
    else:
        _light(op, op.node, model, tables)


def _couple(model: Model, a: int, b: int, table: Floats) -> None:
    """What pairs of labels of two values' variables cost."""
    i, j = (model.variable[model.of_value[value]] for value in (a, b))
    if i == j:
        model.problem.costs[i] = model.problem.costs[i] + np.diagonal(table)
    else:
        model.problem.add(i, j, table)


def _work(node: Node, model: Model) -> float:
    """What a node counts on one device: the slower of arithmetic and, where nothing is fused, memory."""
    cost = leaf_cost(node)
    moved = 0.0 if node.op in FUSED else cost.bytes
    spent = seconds(replace(cost, bytes=moved, nodes=0.0, iterations=0.0), model.mesh.chip.rates)
    return model.objective.second * spent


def _heavy(op: Op, node: Node, model: Model, tables: Tables) -> None:
    """A decision of its own: what its strategies cost, and what operands and results cost with them."""
    ways = [way for way in strategies(node, model.mesh) if not any(each.partial for each in way.operands)]
    variable = model.problem.variable(len(ways), node)
    model.ways.append((op, variable, ways))
    model.problem.costs[variable] += _work(node, model) * op.times * np.array([way.share for way in ways])
    places = [*enumerate(op.operands), *enumerate(op.results, start=len(op.operands))]
    for position, value in places:
        if value not in model.of_value:
            continue
        is_operand = position < len(op.operands)
        asked = tables.indexed(ways, position)
        own = model.layouts(value)
        aval = model.sent[value]
        order = model.orders.get(value, ())
        table = tables.back(aval, own, asked) if is_operand else tables.between(aval, asked, own, order)
        table = tables.possible(table, ways, own, op.times)
        other = model.variable[model.of_value[value]]
        model.problem.add(variable, other, table)
        if value in (model.given if is_operand else model.late):
            model.soft.note(variable, other, table, ahead=is_operand)
            if not is_operand and op.times == 1:
                model.soft.joined.append((variable, other, tables.sums(asked, own)))


def _light(op: Op, node: Node, model: Model, tables: Tables) -> None:
    """An operation that follows its largest array."""
    values = (*op.operands, *op.results)
    avals = [model.sent[value] for value in values]
    inside = [n for n, value in enumerate(values) if value in model.of_value]
    if not inside:
        return
    home = max(reversed(inside), key=lambda n: nbytes(model.flat.avals[values[n]]))
    cluster = model.of_value[values[home]]
    variable = model.variable[cluster]
    work = _work(node, model) * op.times
    places = [model.layouts(value) if n in inside else None for n, value in enumerate(values)]
    share, needs = tables.follow(op.factors, home, places, avals, len(op.operands))
    model.problem.costs[variable] = model.problem.costs[variable] + work * share
    if cluster.sums:
        return
    for n, (asked, closed) in needs.items():
        own = places[n]
        if own is None:
            if values[n] not in model.late:  # else it is summed together with the gradients
                model.problem.costs[variable] = model.problem.costs[variable] + closed * op.times
        elif model.of_value[values[n]] is cluster:
            if closed.any():
                model.problem.costs[variable] = model.problem.costs[variable] + closed * op.times
        else:
            is_operand = n < len(op.operands)
            table = (
                tables.between(avals[n], own, asked).T if is_operand else tables.between(avals[n], asked, own)
            )
            model.problem.add(
                variable,
                model.variable[model.of_value[values[n]]],
                table * op.times if op.times > 1 else table,
            )
