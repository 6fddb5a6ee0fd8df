"""What is kept of the values of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.dimensions.result import Dependencies, Kept
from lepton_jax.ir.graph import Graph, Node, Value

Indices: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
"""Ascending indices of one dimension."""


class CutError(ValueError):
    """A program cannot be cut so: the message names the operation and says why."""


@dataclass(frozen=True)
class Cut:
    """What is kept of the values of a graph and its regions.

    Attributes:
        kept: of each value that becomes smaller, for each dimension, the indices that stay.
        numbers: operands that count elements (a mean's divisor), by node and place, and what they become.
    """

    kept: Mapping[Value, Kept]
    numbers: Mapping[tuple[Node, int], float] = field(default_factory=dict)

    @classmethod
    def found(cls, found: Dependencies, params: Mapping[tuple[int, int], Indices]) -> Cut:
        """What a program keeps where these indices stay of its inputs, by position and dimension.

        Raises:
            DimensionError: they cannot be cut so.
        """
        if not params:
            return cls({})
        kept = found.kept(params)
        smaller = {value: each for value, each in kept.items() if any(one is not None for one in each)}
        numbers = {
            (count.node, count.operand): count.new(kept)
            for count in found.counts
            if any(value in smaller for value, _ in count.dims)
        }
        return cls(smaller, numbers)

    def of(self, value: Value) -> Kept:
        """What stays of each dimension of a value."""
        return self.kept.get(value, (None,) * value.ndim)

    def shape(self, value: Value) -> tuple[Any, ...]:
        """The shape of what stays of a value."""
        return tuple(
            size if each is None else len(each)
            for size, each in zip(value.shape, self.of(value), strict=True)
        )

    def aval(self, value: Value) -> Any:
        """The abstract value of what stays."""
        return value.aval.update(shape=self.shape(value)) if value in self.kept else value.aval

    def concerns(self, node: Node) -> bool:
        """Whether a node, or one in its regions, is to run on other arrays."""
        if any(value in self.kept for value in (*node.operands, *node.results)):
            return True
        if any((node, place) in self.numbers for place in range(len(node.operands))):
            return True
        return any(self.concerns_graph(region) for region in node.regions)

    def concerns_graph(self, graph: Graph) -> bool:
        """Whether a value of a graph, or one in its regions, becomes another one."""
        ends = (*graph.inputs, *graph.outputs)
        return any(value in self.kept for value in ends) or any(map(self.concerns, graph))

    def constant(self, node: Node, place: int) -> Any:
        """What the constant becomes that a node reads at a place."""
        value = node.operands[place]
        if (number := self.numbers.get((node, place))) is not None:
            return _like(value, number)
        return take(value.const, self.kept[value]) if value in self.kept else value.const


def _like(value: Value, number: float) -> Any:
    """A number as the constant in whose place it comes."""
    if np.ndim(value.const):
        return np.full(np.shape(value.const), number, value.dtype)
    return (
        type(value.const)(number)
        if type(value.const) in (int, float)
        else np.asarray(number, value.dtype)[()]
    )


def take(array: Any, kept: Sequence[Indices | None]) -> Any:
    """The indices that stay of an array or a tracer.

    Returns:
        A numpy array of a numpy array, a JAX array of others.
    """
    if all(each is None for each in kept):
        return array
    if isinstance(array, np.ndarray):
        for axis, each in enumerate(kept):
            array = array if each is None else np.take(array, each, axis)
        return array
    for axis, each in enumerate(kept):
        array = array if each is None else take_axis(array, each, axis)
    return array


def take_axis(array: Any, indices: Indices, axis: int) -> Any:
    """Elements of one axis: a slice where the indices are evenly spaced, gathered otherwise."""
    if (spaced := evenly_spaced(indices)) is not None:
        start, stride = spaced
        stop = start + stride * (len(indices) - 1) + 1
        if start == 0 and stride == 1 and stop == array.shape[axis]:
            return array
        return jax.lax.slice_in_dim(array, start, stop, stride, axis)
    return jnp.take(
        array, indices, axis=axis, indices_are_sorted=bool(np.all(np.diff(indices) > 0)), mode="clip"
    )


def evenly_spaced(indices: Indices) -> tuple[int, int] | None:
    """(first, step) of indices that grow by the same step, or None."""
    if len(indices) == 0:
        return None
    steps = np.unique(np.diff(indices))
    if len(steps) > 1 or (len(steps) == 1 and steps[0] < 1):
        return None
    return int(indices[0]), int(steps[0]) if len(steps) else 1


def places(wanted: Indices, kept: Indices | None, node: Node, axis: int) -> Indices:
    """Where indices stand among those that stay.

    Raises:
        CutError: one of them does not stay.
    """
    if kept is None:
        return wanted
    found = np.searchsorted(kept, wanted)
    if np.any(found >= len(kept)) or np.any(kept[np.minimum(found, len(kept) - 1)] != wanted):
        raise CutError(f"{node.op} reads indices of dimension {axis} that are cut away ({where(node)})")
    return found


def where(node: Node) -> str:
    """Where a node comes from, for messages."""
    return "/".join(part for part in (node.scope, _jax.summarize(node.source)) if part)
