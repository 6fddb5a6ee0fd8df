"""When two nodes compute the same: structural keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value

COMMUTATIVE: Final = frozenset({"add", "mul", "max", "min", "and", "or", "xor", "eq", "ne", "add_any"})

_NOTHING: Final[Mapping[Value, Value]] = {}


def node_key(node: Node, renamed: Mapping[Value, Value] = _NOTHING) -> Any | None:
    """A hashable key that equal nodes on the same operands share, or None where there is none.

    Two nodes with one key compute the same values. Operands of commutative operations
    are put in order. Nodes with effects have no key.

    Args:
        renamed: values to put in place of operands, to ask for the key that the node
            would have elsewhere.
    """
    if node.effects:
        return None
    if renamed:
        operands = [operand_key(renamed.get(value, value)) for value in node.operands]
    else:
        operands = [operand_key(value) for value in node.operands]
    if node.op in COMMUTATIVE:
        operands.sort(key=hash)
    params = params_key(node.params)
    if params is None:
        return None
    regions = [graph_key(region) for region in node.regions]
    if None in regions:
        return None
    return (node.op, node.context, params, tuple(operands), tuple(regions))


def operand_key(value: Value) -> Any:
    """A key for a value as an operand: scalars by content, all others by identity."""
    if not value.is_const:
        return value
    if value.ndim == 0:
        array = _jax.plain_constant(value.const)
        if array is not None:
            return (value.dtype, array.tobytes())
    return ("array", id(value.const))


def params_key(params: Mapping[str, Any]) -> Any | None:
    """A hashable form of parameters, or None."""
    try:
        key: Any = tuple(params.items())
        hash(key)
    except TypeError:
        return _slow_params_key(params)
    return key


def _slow_params_key(params: Mapping[str, Any]) -> Any | None:
    """The same where a parameter is an array, a list or a dict."""
    try:
        key = tuple((k, _hashable(params[k])) for k in sorted(params))
        hash(key)
    except TypeError:
        return None
    return key


def _hashable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype, value.tobytes())
    if isinstance(value, dict):
        return tuple((k, _hashable(value[k])) for k in sorted(value))
    if isinstance(value, list):
        return ("list", *map(_hashable, value))
    return value


def graph_key(graph: Graph) -> Any | None:
    """A key that graphs of the same structure share, or None.

    Linear in the graph's size, shared regions counted once: a key is kept until the graph changes.
    """
    version = graph.total_version()
    if graph.key is None or graph.key[0] != version:
        graph.key = (version, _graph_key(graph))
    return graph.key[1]


def _graph_key(graph: Graph) -> Any | None:
    numbers: dict[Value, Any] = {}

    def number(value: Value) -> Any:
        if value.is_const:
            return operand_key(value)
        return numbers.setdefault(value, len(numbers))

    for value in graph.inputs:
        number(value)
    lines: list[Any] = [tuple(value.aval for value in graph.inputs)]
    for node in graph:
        params = params_key(node.params)
        regions = tuple(map(graph_key, node.regions))
        if params is None or node.effects or None in regions:
            return None
        operands = tuple(map(number, node.operands))
        lines.append((node.op, node.context, params, operands, regions, len(node.results)))
        for value in node.results:
            number(value)
    return Interned((*lines, tuple(map(number, graph.outputs))))


class Interned:
    """A long tuple whose hash is computed once.

    Args:
        lines: what is in it.
    """

    __slots__ = ("_hash", "lines")

    def __init__(self, lines: tuple[Any, ...]) -> None:
        self.lines = lines
        self._hash = hash(lines)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Interned) and self._hash == other._hash and self.lines == other.lines

    def __repr__(self) -> str:
        return repr(self.lines)
