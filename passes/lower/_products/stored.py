"""Weights that are marked as what is kept of parameters: `store` stands between them and their products."""

from __future__ import annotations

from collections.abc import Iterator

from lepton_jax.ir.binding import Sources, is_stored
from lepton_jax.ir.graph import Node, Value


def stem(value: Value) -> Value:
    """What a value is before the mark of `store`; itself where it has none."""
    while value.node is not None and is_stored(value.node):
        value = value.node.operands[0]
    return value


def is_early(value: Value, early: Sources) -> bool:
    """Whether a value is a constant, or `prepare` makes it: of parameters alone, marked or not."""
    source = stem(value)
    return source.is_const or source in early


def runs_early(node: Node, early: Sources) -> bool:
    """Whether `prepare` runs a node."""
    return bool(node.results) and all(value in early for value in node.results)


def readers(value: Value) -> Iterator[tuple[Node, int]]:
    """Who reads a value, and as which operand, marks of `store` looked through."""
    return value.readers(is_stored)
