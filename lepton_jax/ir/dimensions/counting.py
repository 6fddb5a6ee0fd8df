"""Constants that are the number of elements of a sum: the divisors of means."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from lepton_jax.ir.dimensions.result import Count
from lepton_jax.ir.dimensions.walk import constant_of
from lepton_jax.ir.graph import Graph, Node, Value

_MOVES: Final = frozenset(
    {"broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "transpose", "copy", "neg"}
)


def counts_of(graph: Graph) -> Iterator[Count]:
    """The divisors of means, of variances with one degree of freedom less too, regions included.

    A constant is one if it divides (or its reciprocal multiplies) a sum, and is the number of its elements.
    """
    for node in graph.walk():
        if node.op == "div":
            places: tuple[tuple[int, int], ...] = ((0, 1),)
        elif node.op == "mul":
            places = ((0, 1), (1, 0))
        else:
            continue
        for summed, place in places:
            found = _count(node, node.operands[summed], place)
            if found is not None:
                yield found
                break


def _count(node: Node, summed: Value, place: int) -> Count | None:
    holder, position = node, place
    source = node.operands[place].node
    if source is not None and source.op == "broadcast_in_dim" and len(source.results[0].uses) == 1:
        holder, position = source, 0
    constant = constant_of(holder.operands[position])
    if constant is None or constant.dtype.kind in "bc" or not np.isfinite(constant):
        return None
    inverse = node.op == "mul"
    if constant == 0 or (inverse and constant.dtype.kind in "iu"):
        return None
    dims: list[tuple[Value, int]] = []
    for reduction in _sums(summed):
        dims += _summed(reduction)
        if not all(type(value.shape[dim]) is int for value, dim in dims):
            return None
        elements = math.prod(value.shape[dim] for value, dim in dims)
        for offset in (0, -1):
            if elements + offset > 0 and _is(constant, elements + offset, inverse):
                return Count(holder, position, float(constant), tuple(dims), offset, inverse)
    return None


def symbolic_counts(graph: Graph) -> Iterator[tuple[Node, Value, int]]:
    """The means over symbolic dimensions and others: what divides them cannot be computed anew.

    Yields:
        The division, and the value and dimension of each other dimension that is counted.
    """
    for node in graph.walk():
        if node.op == "div" and _is_symbolic(node.operands[1]):
            for reduction in _sums(node.operands[0]):
                for value, dim in _summed(reduction):
                    if type(value.shape[dim]) is int:
                        yield node, value, dim


def _is_symbolic(value: Value) -> bool:
    """Whether a number is made of the sizes of symbolic dimensions."""
    node = value.node
    while node is not None and node.op in _MOVES:
        node = node.operands[0].node
    if node is not None and node.op == "mul":
        return any(map(_is_symbolic, node.operands))
    return node is not None and node.op == "dim_as_value"


def _summed(reduction: Node) -> list[tuple[Value, int]]:
    """The dimensions that a sum goes over."""
    if reduction.op == "dot_general":
        ((axes, _), _) = reduction.params["dimension_numbers"]
    else:
        axes = reduction.params["axes"]
    return [(reduction.operands[0], int(axis)) for axis in axes]


def _sums(value: Value) -> Iterator[Node]:
    """The sums that a value is made of, the last first, with nothing but movement between.

    A product of an array with itself is a sum of squares.
    """
    node = value.node
    while node is not None and (node.op in _MOVES or _is_sum(node)):
        if _is_sum(node):
            yield node
        node = node.operands[0].node


def _is_sum(node: Node) -> bool:
    if node.op != "dot_general":
        return node.op == "reduce_sum"
    left, right = node.operands
    ((axes, others), _) = node.params["dimension_numbers"]
    return left is right and tuple(axes) == tuple(others)


def _is(constant: Any, number: int, inverse: bool) -> bool:
    expected = 1.0 / number if inverse else number
    return bool(np.asarray(expected).astype(constant.dtype) == constant)
