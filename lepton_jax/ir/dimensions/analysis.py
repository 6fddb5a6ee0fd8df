"""The analysis: which dimensions are cut together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from lepton_jax.ir.binding import binding_time
from lepton_jax.ir.dimensions import (
    elementwise,
    indexing,
    linear_algebra,
    products,
    reductions,
    regions,
    reshaping,
)
from lepton_jax.ir.dimensions.atoms import Parts
from lepton_jax.ir.dimensions.counting import counts_of, symbolic_counts
from lepton_jax.ir.dimensions.grouping import groups_of
from lepton_jax.ir.dimensions.result import Count, Dependencies
from lepton_jax.ir.dimensions.walk import Walk, settle
from lepton_jax.ir.graph import Graph

RULE_MODULES = (elementwise, indexing, linear_algebra, products, reductions, regions, reshaping)


def analyse(
    graph: Graph,
    params: Mapping[int, str] | None = None,
    *,
    paths: Mapping[int, str] | None = None,
    protect: Mapping[tuple[int, int], str] | None = None,
    outputs: Literal["pinned", "free"] = "pinned",
) -> Dependencies:
    """Find out which dimensions of which values are cut together.

    Args:
        graph: calls inlined, constants folded. It is not changed.
        params: the paths of the inputs that can be cut, by position; all inputs if None. Others are pinned.
        paths: the names of the other inputs, for messages.
        protect: dimensions of inputs, by position and dimension, that are not cut, with the reason.
        outputs: whether dimensions of what it returns are pinned. If they are free, so is what nothing
            reads.

    Returns:
        The groups.
    """
    names = {i: f"input {i}" for i in range(len(graph.inputs))} | dict(paths or {}) | dict(params or {})
    free = range(len(graph.inputs)) if params is None else sorted(params)
    early = binding_time(graph, free)
    walk = Walk(lambda value: not value.is_const and value not in early)
    atoms = walk.atoms
    for i in free:
        walk.of(graph.inputs[i])
    for (position, dim), why in (protect or {}).items():
        atoms.pin(walk.of(graph.inputs[position])[dim], why)
    for i, value in enumerate(graph.inputs):
        if params is not None and i not in params:
            for each in walk.of(value):
                atoms.pin(each, f"{names[i]} is given by the caller")
        walk.give(value, walk.of(value))
    walk.run(graph)
    for i, value in enumerate(graph.outputs):
        walk.note_read(walk.of(value))
        for dim, each in enumerate(walk.of(value) if outputs == "pinned" else ()):
            atoms.pin(each, f"it is dimension {dim} of output {i}")
    for node, value, dim in symbolic_counts(graph):
        walk.pin(walk.of(value)[dim], node, "counts it together with a symbolic dimension")
    if outputs == "pinned":
        _pin_unread(walk, graph, free)
    settle(atoms, walk.choices)
    parts = Parts(atoms, walk.dims, [names[i] for i in range(len(graph.inputs))])
    groups = groups_of(atoms, {i: walk.dims[graph.inputs[i]] for i in free}, names, walk.layers)
    return Dependencies(
        graph, groups, tuple(each for each in counts_of(graph) if _concerns(parts, each)), parts
    )


def _pin_unread(walk: Walk, graph: Graph, free: Sequence[int]) -> None:
    """Pin the indices of parameters that no operation reads: nothing is known of them."""
    atoms = walk.atoms
    atoms.solve()
    read = np.zeros(atoms.size, bool)
    for each in walk.read.values():
        read[atoms.labels(each)] = True
    for i in free:
        for each in walk.of(graph.inputs[i]):
            unread = each[~read[atoms.labels(each)]]
            if len(unread):
                atoms.pin(unread, "nothing reads it")


def _concerns(parts: Parts, count: Count) -> bool:
    """Whether any of what was counted can be cut."""
    known = [parts.dims[value][dim] for value, dim in count.dims if value in parts.dims]
    return any(not bool(parts.atoms.pinned(each).all()) for each in known)
