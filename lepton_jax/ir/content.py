"""When two programs compute the same, whoever traced them and in whatever order: keys by content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.structure import Interned, params_key

VARY: Final = "pvary"
"""JAX's mark that an array, the same on all devices of a `shard_map`, is to be taken for one that differs."""


def content_key(graph: Graph) -> Any:
    """A hashable key that graphs share which compute the same from equal constants, whoever traced them.

    What is computed counts, not how the program is written: its order, calls, marks, what is computed twice
    and what nobody reads make no difference. Functions and the like among the parameters count as equal where
    they are the same object; a graph that has no key is equal to itself alone. The mesh around the trace does
    not count, nor along which of its axes values vary in a `shard_map`.

    Example:
        >>> from lepton_jax.ir import trace
        >>> one = trace(lambda x, y: (x + 1, y * 2), 1.0, 2.0)
        >>> other = trace(lambda x, y: (y * 2, x + 1)[::-1], 1.0, 2.0)
        >>> content_key(one) == content_key(other)
        True
    """
    key = _key(graph)
    return graph if key is None else key


def _key(graph: Graph) -> Any | None:
    lines = _Lines(graph.inputs)
    if not lines.write(graph):
        return None
    avals = tuple(_jax.aval_off_mesh(value.aval) for value in graph.inputs)
    return Interned((avals, *lines.in_order([lines.name(value) for value in graph.outputs])))


class _Lines:
    """What a program computes, each line once: an operation, and the names of what it reads.

    An input is named by its place, what is computed by its line and the place among its results, and a
    constant by what is in it.

    Args:
        inputs: of the program.
    """

    def __init__(self, inputs: Sequence[Value]) -> None:
        self._names: dict[Value, Any] = {value: ("input", i) for i, value in enumerate(inputs)}
        self._lines: list[tuple[Any, ...]] = []
        self._places: dict[Any, int] = {}

    def name(self, value: Value) -> Any:
        """The name of a value."""
        return _content(value) if value.is_const else self._names[value]

    def write(self, graph: Graph) -> bool:
        """Write the nodes of a graph; False where one has no key."""
        for node in graph:
            if _is_mark(node):
                self._call(node.results, node.operands)
            elif _is_call(node):
                self._call(node.regions[0].inputs, node.operands)
                if not self.write(node.regions[0]):
                    return False
                self._call(node.results, node.regions[0].outputs)
            elif not self._write(node):
                return False
        return True

    def in_order(self, outputs: Sequence[Any]) -> list[Any]:
        """The lines that outputs need, each behind those that it reads, then the outputs; named anew."""
        places: dict[int, int] = {}
        ordered: list[Any] = []

        def renamed(name: Any) -> Any:
            return ("line", places[name[1]], name[2]) if name[0] == "line" else name

        waiting = [name[1] for name in reversed(outputs) if name[0] == "line"]
        while waiting:
            operands, *rest = self._lines[waiting[-1]]
            first = [name[1] for name in operands if name[0] == "line" and name[1] not in places]
            if first:
                waiting += reversed(first)
                continue
            place = waiting.pop()
            if place not in places:
                places[place] = len(ordered)
                ordered.append((tuple(map(renamed, operands)), *rest))
        return [*ordered, tuple(map(renamed, outputs))]

    def _call(self, values: Sequence[Value], others: Sequence[Value]) -> None:
        """Values are called as these are."""
        self._names.update(zip(values, map(self.name, others), strict=True))

    def _write(self, node: Node) -> bool:
        params = params_key(_off_mesh(node.params))
        regions = [_key(region) for region in node.regions]
        if params is None or node.effects or None in regions:
            return False
        operands = tuple(map(self.name, node.operands))
        line = (operands, node.op, _jax.context_off_mesh(node.context), params, tuple(regions))
        place = self._places.setdefault(line, len(self._lines))
        if place == len(self._lines):
            self._lines.append(line)
        self._names.update((value, ("line", place, i)) for i, value in enumerate(node.results))
        return True


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
    """The name of a constant: what is in it. Literals may be kept as wider numbers than they stand for."""
    array = _jax.plain_constant(value.const)
    if array is None:
        return ("array", id(value.const))
    content = array.astype(value.dtype, copy=False).tobytes()
    return ("content", value.dtype, value.shape, hashlib.sha256(content).digest())
