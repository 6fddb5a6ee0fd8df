"""The problem of choosing layouts for a program on a mesh, and what its labels mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.values import only_multiplied
from lepton_jax.parallel.prediction.walk import RENAMES
from lepton_jax.parallel.solver.choices import (
    Label,
    Layouts,
    index_layouts,
    label_of,
    layout_of,
    real_axes,
)
from lepton_jax.parallel.solver.flat import Flat, Op
from lepton_jax.parallel.solver.groups import Cluster
from lepton_jax.parallel.solver.objective import TIME, Objective
from lepton_jax.parallel.solver.overlap import Soft
from lepton_jax.parallel.solver.problem import Labels, Problem
from lepton_jax.parallel.strategies import Strategy


@dataclass(eq=False)
class Model:
    """A program's problem, and what its labels mean.

    Attributes:
        problem: what is chosen.
        flat: the operations.
        clusters: those with a variable.
        variable: of each cluster its variable.
        labels: of each cluster its labels.
        ways: of each heavy operation its variable and its strategies.
        given, late: values that are there from the start, and those that only outputs wait for.
        objective: what its costs are.
        sent: of each value what is sent of it.
        orders: of what is read transposed alone, which of its dimensions is which there.
    """

    problem: Problem
    flat: Flat
    mesh: MeshSpec
    of_value: dict[int, Cluster]
    variable: dict[Cluster, int] = field(default_factory=dict)
    labels: dict[Cluster, list[Label]] = field(default_factory=dict)
    ways: list[tuple[Op, int, list[Strategy]]] = field(default_factory=list)
    given: frozenset[int] = frozenset()
    late: frozenset[int] = frozenset()
    objective: Objective = TIME
    _rows: dict[Any, Layouts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.soft = Soft(self.problem)
        self.sent = _sent(self.flat, self.mesh)
        orders = {number: _order(value) for value, number in self.flat.numbers.items()}
        self.orders = {number: order for number, order in orders.items() if order != tuple(sorted(order))}

    def layouts(self, value: int) -> Layouts:
        """The layouts of a value under each label of its variable."""
        cluster = self.of_value[value]
        row, labels = cluster.groups[value], self.labels[cluster]
        key = (row, id(labels))
        if key not in self._rows:
            names = real_axes(self.mesh)
            self._rows[key] = index_layouts([layout_of(row, label, names) for label in labels])
        return self._rows[key]

    def layout(self, value: int, chosen: Sequence[int]) -> Layout:
        """How a value lies when labels are chosen."""
        if value not in self.of_value:
            return Layout.whole(len(getattr(self.flat.avals[value], "shape", ())))
        return self.layouts(value).of(chosen[self.variable[self.of_value[value]]])

    def assignment(self, chosen: Sequence[int]) -> dict[Value, Layout]:
        """The layouts of all values of the graph."""
        return {value: self.layout(number, chosen).complete() for value, number in self.flat.numbers.items()}

    def nearest(self, assignment: Mapping[Value, Layout]) -> Labels:
        """Labels like an assignment: of each cluster the label that most of its bytes have."""
        chosen = [0] * len(self.problem.costs)
        names = real_axes(self.mesh)
        votes: dict[Cluster, dict[Label, float]] = {}
        for value, layout in assignment.items():
            number = self.flat.numbers.get(value)
            cluster = self.of_value.get(number) if number is not None else None
            if cluster is None or number is None:
                continue
            label = label_of(cluster.groups[number], layout, names)
            if label is not None:
                count = votes.setdefault(cluster, {})
                count[label] = count.get(label, 0.0) + float(np.prod(value.shape))
        for cluster, count in votes.items():
            known = {label: i for i, label in enumerate(self.labels[cluster])}
            fitting = [label for label in count if label in known]
            if fitting:
                chosen[self.variable[cluster]] = known[max(fitting, key=lambda each: count[each])]
        return chosen


def _sent(flat: Flat, mesh: MeshSpec) -> list[Any]:
    """The shapes and types in which values are sent: on TPUs what only products read is rounded before."""
    found = list(flat.avals)
    if mesh.chip.rates.platform != "tpu":
        return found
    for value, number in flat.numbers.items():
        if value.dtype == jnp.float32 and only_multiplied(value):
            found[number] = value.aval.update(dtype=jnp.dtype(jnp.bfloat16))
    for op in flat.ops:
        if op.node is None and op.operands[0] < op.results[0]:  # a copy for readers
            found[op.results[0]] = found[op.operands[0]]
    return found


def _order(value: Value) -> tuple[int, ...]:
    """The dimensions of a value in the order in which its only reader has them."""
    order = tuple(range(value.ndim))
    while len(value.uses) == 1:
        ((user, _),) = value.uses
        if user.op not in RENAMES or user.result.ndim != value.ndim:
            break
        if user.op == "transpose":
            order = tuple(order[dim] for dim in user.params["permutation"])
        value = user.result
    return order
