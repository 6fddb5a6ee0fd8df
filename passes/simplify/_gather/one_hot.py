"""Recognising one-hot arrays: numbers that are compared with their position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value

Places = tuple[int | None, ...]
"""For each dimension the one of the larger array that it is; None where it has size one."""


@dataclass(frozen=True, slots=True)
class OneHot:
    """An array that is one (or true) where `index` equals the position along `axis`, and zero elsewhere.

    Attributes:
        index: whole numbers; those that are no position along the axis have no one.
        places: which dimension of the array each dimension of `index` is.
        axis: the dimension along which positions count; None where it was compared with a number.
        number: that number.
    """

    index: Value
    places: Places
    axis: int | None
    number: int | None = None

    def covered(self) -> set[int]:
        """The dimensions along which the index may differ."""
        return {place for place in self.places if place is not None}


def one_hot(value: Value) -> OneHot | None:
    """The one-hot array that a value is: a comparison with positions, converted or spread."""
    places = tuple(range(value.ndim))
    node = value.node
    while node is not None and node.op != "eq":
        if node.op == "broadcast_in_dim":
            source, dimensions = node.operands[0], node.params["broadcast_dimensions"]
            if any(n != node.result.shape[d] for n, d in zip(source.shape, dimensions, strict=True)):
                return None
            places = tuple(places[d] for d in dimensions)
        elif node.op == "select_n":
            if len(node.operands) != 3 or not _zero_and_one(node):
                return None
        elif node.op != "convert_element_type":
            return None
        node = node.operands[0].node
    return None if node is None else _comparison(node, places)


def _zero_and_one(node: Node) -> bool:
    which, zero, one = node.operands
    return which.shape == node.result.shape and facts_of(zero).is_zero and facts_of(one).is_one


def _comparison(node: Node, places: tuple[int, ...]) -> OneHot | None:
    for other, position in (node.operands, node.operands[::-1]):
        if not _is_whole(other):
            continue
        facts = facts_of(position)
        if facts.splat is not None and node.result.shape == other.shape:
            index, inner = _source(other, tuple(range(other.ndim)))
            return OneHot(index, _through(inner, places), None, int(facts.splat))
        if facts.iota is None or facts.iota[1:] != (0, 1) or position.ndim != node.result.ndim:
            continue
        axis = facts.iota[0]
        if position.shape[axis] != node.result.shape[axis]:
            continue
        kept = tuple(
            d if n == node.result.shape[d] and d != axis else None for d, n in enumerate(other.shape)
        )
        index, inner = _source(other, kept)
        full = other.ndim > 0 and other.shape[axis] != 1
        if full and (index is other or axis in other_places(other)):
            continue
        return OneHot(index, _through(inner, places), places[axis])
    return None


def other_places(value: Value) -> tuple[int, ...]:
    """The dimensions over which a broadcast lays those of its operand."""
    assert value.node is not None
    found: tuple[int, ...] = value.node.params["broadcast_dimensions"]
    return found


def _is_whole(value: Value) -> bool:
    return value.dtype is not None and jnp.issubdtype(value.dtype, jnp.integer)


def _source(value: Value, kept: Places) -> tuple[Value, Places]:
    """What is spread over the dimensions of a value, and where its dimensions are."""
    node = value.node
    if node is None or node.op != "broadcast_in_dim":
        return value, kept
    source, dimensions = node.operands[0], node.params["broadcast_dimensions"]
    inner = [kept[d] if source.shape[i] == value.shape[d] else None for i, d in enumerate(dimensions)]
    return source, tuple(inner)


def _through(inner: Places, outer: Sequence[int]) -> Places:
    return tuple(None if d is None else outer[d] for d in inner)


def spread(index: jax.Array, places: Places, shape: Sequence[int], dims: Sequence[int]) -> jax.Array:
    """The index as an array over some dimensions `dims`, in this order, of an array of `shape`."""
    squeezed = lax.squeeze(index, [i for i, place in enumerate(places) if place is None])
    kept = [place for place in places if place is not None]
    order = [d for d in dims if d in kept]
    turned = lax.transpose(squeezed, [kept.index(d) for d in order]) if kept != order else squeezed
    full = tuple(shape[d] for d in dims)
    if turned.shape == full:
        return turned
    return lax.broadcast_in_dim(turned, full, [list(dims).index(d) for d in order])
