"""When two nodes compute the same: structural keys."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value

COMMUTATIVE: Final = frozenset({"add", "mul", "max", "min", "and", "or", "xor", "eq", "ne", "add_any"})

VARY: Final = "pvary"
"""JAX's mark that an array, the same on all devices of a `shard_map`, is to be taken for one that differs."""

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


def content_key(graph: Graph) -> Any:
    """A hashable key that graphs of the same structure with equal constants share, whoever traced them.

    Functions and the like among the parameters count as equal where they are the same object; a graph
    that has no key is equal to itself alone. The mesh around the trace does not count, nor along which of its
    axes values vary in a `shard_map`.
    """
    key = _graph_key(graph, _content)
    return graph if key is None else key


def _is_mark(node: Node) -> bool:
    """Whether a node tells JAX where an array lies, or that its type is meant, and does nothing else."""
    if node.op == "convert_element_type":
        return bool(node.operands[0].dtype == node.result.dtype)
    return node.op == VARY or (
        node.op == "reshard" and _jax.sharding_off_mesh(node.params["dst_sharding"]) is None
    )


def _is_call(node: Node) -> bool:
    """Whether a node calls a body that counts as if it stood there: a mesh around makes more of them."""
    return node.op == "jit" and len(node.regions) == 1 and _jax.jit_is_plain(node.params)


def _off_mesh(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters without the mesh around the trace, which calls keep as one of theirs."""
    return {name: _value_off_mesh(value) for name, value in params.items() if name != "ctx_mesh"}


def _value_off_mesh(value: Any) -> Any:
    """A body that was traced anew is not the same object: without constants it counts by its text."""
    if _jax.is_jaxpr(value) and not _jax.parts(value)[1]:
        return str(value)
    return _jax.sharding_off_mesh(value)


def _content(value: Value) -> Any:
    """A key for a constant: what is in it."""
    array = _jax.plain_constant(value.const)
    if array is None:
        return ("array", id(value.const))
    return (value.dtype, value.shape, hashlib.sha256(array.tobytes()).digest())


def _graph_key(graph: Graph, constant: Callable[[Value], Any] = operand_key) -> Any | None:
    is_content = constant is not operand_key
    lines = _Lines(constant, is_content)
    avals = tuple(_jax.aval_off_mesh(v.aval) if is_content else v.aval for v in graph.inputs)
    for value in graph.inputs:
        lines.number(value)
    if not lines.write(graph):
        return None
    return _Interned((avals, *lines.lines, tuple(map(lines.number, graph.outputs))))


class _Lines:
    """A program in lines, its values numbered.

    Args:
        constant: a key for a constant.
        is_content: what is computed counts, not how the program is written: marks and calls do not, nor does
            what is computed twice.
    """

    def __init__(self, constant: Callable[[Value], Any], is_content: bool) -> None:
        self.lines: list[Any] = []
        self._constant, self._is_content = constant, is_content
        self._region = functools.partial(_graph_key, constant=constant) if is_content else graph_key
        self._numbers: dict[Value, Any] = {}
        self._made: dict[Any, list[int]] = {}
        self._fresh = itertools.count()

    def number(self, value: Value) -> Any:
        """The number of a value, or the key of a constant."""
        if value.is_const:
            return self._constant(value)
        if value not in self._numbers:
            self._numbers[value] = next(self._fresh)
        return self._numbers[value]

    def write(self, graph: Graph) -> bool:
        """Write the nodes of a graph; False where one has no key."""
        for node in graph:
            if self._is_content and _is_mark(node):
                self._name(node.results, node.operands)
            elif self._is_content and _is_call(node):
                self._name(node.regions[0].inputs, node.operands)
                if not self.write(node.regions[0]):
                    return False
                self._name(node.results, node.regions[0].outputs)
            elif not self._write(node):
                return False
        return True

    def _name(self, values: Sequence[Value], others: Sequence[Value]) -> None:
        """Values are other names of these."""
        self._numbers.update(zip(values, map(self.number, others), strict=True))

    def _write(self, node: Node) -> bool:
        params = params_key(_off_mesh(node.params) if self._is_content else node.params)
        regions = [self._region(region) for region in node.regions]
        if params is None or node.effects or any(key is None for key in regions):
            return False
        context = _jax.context_off_mesh(node.context) if self._is_content else node.context
        operands = tuple(map(self.number, node.operands))
        line = (node.op, context, params, operands, tuple(regions), len(node.results))
        if not self._is_content or line not in self._made:
            self.lines.append(line)
            self._made[line] = [next(self._fresh) for _ in node.results]
        self._numbers.update(zip(node.results, self._made[line], strict=True))
        return True


class _Interned:
    """A long tuple whose hash is computed once."""

    __slots__ = ("_hash", "lines")

    def __init__(self, lines: tuple[Any, ...]) -> None:
        self.lines = lines
        self._hash = hash(lines)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Interned) and self._hash == other._hash and self.lines == other.lines

    def __repr__(self) -> str:
        return repr(self.lines)
