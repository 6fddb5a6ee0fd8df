"""The graphs of stages: from parameters, the batch and what the stage before sends, to what is sent on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.importer import copy_equations
from lepton_jax.ir.inline import copy_graph, copy_node
from lepton_jax.parallel.pipeline.units import ROWWISE, Trunk


@dataclass(frozen=True)
class Piece:
    """A parameter, or rows of it.

    Attributes:
        param: its position among the inputs of the program.
        rows: the first and the end of the rows; None for all of it.
    """

    param: int
    rows: tuple[int, int] | None = None

    def overlaps(self, other: Piece) -> bool:
        """Whether both have something of a parameter."""
        if self.param != other.param:
            return False
        if self.rows is None or other.rows is None:
            return True
        return self.rows[0] < other.rows[1] and other.rows[0] < self.rows[1]


@dataclass(frozen=True)
class Batch:
    """An input of the program that is no parameter."""

    position: int


@dataclass(frozen=True)
class Sent:
    """What the stage before sends, by its place there."""

    place: int


Source = Piece | Batch | Sent
Key = tuple[str, Value] | tuple[str, Node, int]
"""What crosses a boundary: a value, or what a loop over layers carries or has stacked so far."""


@dataclass(frozen=True)
class Part:
    """A stage's program.

    Attributes:
        graph: its outputs are what is sent on, of the last stage those of the program.
        sources: what each input of the graph is.
    """

    graph: Graph
    sources: tuple[Source, ...]

    @property
    def pieces(self) -> list[Piece]:
        """The parts of parameters that it reads."""
        return [source for source in self.sources if isinstance(source, Piece)]


def parts(trunk: Trunk, places: Sequence[int]) -> list[Part]:
    """The programs of the stages between places at which a line of units is cut."""
    ends = [0, *places, len(trunk.units)]
    given: list[Key] = []
    found = []
    for first, end in itertools.pairwise(ends):
        sent = _crossing(trunk, end) if end < len(trunk.units) else None
        found.append(_Builder(trunk, first, end).build(given, sent))
        given = sent or []
    return found


def _crossing(trunk: Trunk, place: int) -> list[Key]:
    """What crosses a place, in the order in which it is made."""
    found: list[Key] = []
    for node in trunk.line:
        first, last = trunk.unit_of[node]
        if last < place:
            found += [("value", value) for value in node.results if trunk.last_use(value) >= place]
        elif first < place:
            found += [("carry", node, i) for i in range(node.params["num_carry"])]
            found += [("stacked", node, value.index) for value in trunk.stacked(node)]
    return found


class _Builder:
    """Writes the units of one stage into a graph."""

    def __init__(self, trunk: Trunk, first: int, end: int) -> None:
        self.trunk, self.first, self.end = trunk, first, end
        self.graph = Graph(f"stage_{trunk.graph.name}", [])
        self.sources: list[Source] = []
        self.inputs: dict[Source, Value] = {}
        self.env: dict[Key, Value] = {}

    def build(self, given: Sequence[Key], sent: Sequence[Key] | None) -> Part:
        for place, key in enumerate(given):
            self.env[key] = self.input(Sent(place), self.aval(key))
        for node in self.trunk.line:
            first, last = self.trunk.unit_of[node]
            start, end = max(first, self.first), min(last + 1, self.end)
            if start >= end:
                continue
            if self.trunk.is_cut(node):
                self.layers(node, start - first, end - first)
            else:
                self.copy(node)
        if sent is None:
            outputs = [self.read(value) for value in self.trunk.graph.outputs]
        else:
            outputs = [self.env[key] for key in sent]
        self.graph.set_outputs(outputs)
        return Part(self.graph, tuple(self.sources))

    def aval(self, key: Key) -> Any:
        """The shape and dtype of what crosses the boundary before this stage."""
        if len(key) == 2:
            return key[1].aval
        kind, node, index = key
        if kind == "carry":
            return node.results[index].aval
        return _rows(node.results[index].aval, self.first - self.trunk.unit_of[node][0])

    def input(self, source: Source, aval: Any) -> Value:
        if source not in self.inputs:
            self.inputs[source] = self.graph.add_input(aval)
            self.sources.append(source)
        return self.inputs[source]

    def read(self, value: Value) -> Value:
        """A value of the program in this stage: of the line, or computed beside it."""
        if value.is_const:
            return value
        key: Key = ("value", value)
        if key not in self.env:
            if value.node is None:
                is_param = value.index in self.trunk.params
                return self.input(Piece(value.index) if is_param else Batch(value.index), value.aval)
            assert not self.trunk.in_line(value.node), f"{value.node.op} is in no stage before"
            self.copy(value.node)
        return self.env[key]

    def copy(self, node: Node) -> None:
        made = self.graph.append(copy_node(node, [self.read(value) for value in node.operands]))
        self.env.update((("value", old), new) for old, new in zip(node.results, made.results, strict=True))

    def rows(self, value: Value, first: int, end: int) -> Value:
        """Some rows of a value that does not depend on both parameters and the batch."""
        if not value.is_const and value.node is None and value.index in self.trunk.params:
            return self.input(Piece(value.index, (first, end)), _rows(value.aval, end - first))
        node = value.node
        if node is not None and node.op in ROWWISE and not node.operands[0].is_const:
            made = copy_node(node, [self.rows(node.operands[0], first, end)])
            made.results[0].aval = _rows(value.aval, end - first)
            return self.graph.append(made).result
        return self.traced(lambda x: lax.slice_in_dim(x, first, end), self.read(value))

    def traced(self, fun: Callable[..., Any], *values: Value) -> Value:
        """What a function gives of values of the stage."""
        closed = jax.make_jaxpr(fun)(*(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values))
        (found,) = copy_equations(closed, list(values), self.graph, self.graph.ret, {})
        return found

    def layers(self, node: Node, first: int, end: int) -> None:
        """Some rounds of a loop over layers."""
        layers = node.params["length"]
        consts, carry = node.params["num_consts"], node.params["num_carry"]
        fixed = [self.read(value) for value in node.operands[:consts]]
        if first:
            state = [self.env["carry", node, i] for i in range(carry)]
        else:
            state = [self.read(value) for value in node.operands[consts : consts + carry]]
        whole = first == 0 and end == layers
        scanned = [
            self.read(value) if whole else self.rows(value, first, end)
            for value in node.operands[consts + carry :]
        ]
        avals = [v.aval if i < carry else _rows(v.aval, end - first) for i, v in enumerate(node.results)]
        made = self.graph.append(
            Node(
                node.op,
                node.primitive,
                [*fixed, *state, *scanned],
                avals,
                {**node.params, "length": end - first},
                regions=[copy_graph(node.regions[0])],
                source=node.source,
                context=node.context,
                rule=node.rule,
            )
        )
        is_last = end == layers
        for i in range(carry):
            self.env[("value", node.results[i]) if is_last else ("carry", node, i)] = made.results[i]
        for value in self.trunk.stacked(node):
            rows = made.results[value.index]
            if first:
                rows = self.traced(
                    lambda *each: lax.concatenate(each, 0), self.env["stacked", node, value.index], rows
                )
            self.env[("value", value) if is_last else ("stacked", node, value.index)] = rows


def _rows(aval: Any, count: int) -> Any:
    """An abstract value with as many rows."""
    return aval.update(shape=(count, *aval.shape[1:]))
