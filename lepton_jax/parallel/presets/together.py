"""Which dimensions of a program are split together.

Two dimensions go together where an operation has the same major factor in both: along an elementwise chain,
through a product, a transpose, a reshape that leaves the outer part outermost, and in and out of loops. They
make a class: heads with the columns of the projections that make them, the hidden dimension of an MLP with
its bias, the batch with all that is computed for each example.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from lepton_jax.ir.cost import bytes_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import slots, trip_count
from lepton_jax.parallel.factors import Dims, factors_of
from lepton_jax.parallel.union_find import UnionFind

Dim = tuple[Value, int]
PRODUCTS: Final = frozenset({"dot_general", "ragged_dot_general", "conv_general_dilated"})


@dataclass(frozen=True, eq=False)
class Use:
    """A leaf node, the factors of its arrays, and how often it runs."""

    node: Node
    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    sizes: tuple[int, ...]
    reduced: frozenset[int]
    whole: frozenset[int]
    times: int

    def arrays(self) -> Iterator[tuple[Value, Dims]]:
        """Operands, then results, with the factors of their dimensions."""
        yield from zip(self.node.operands, self.operands, strict=True)
        yield from zip(self.node.results, self.results, strict=True)


class Program:
    """A graph with its factors looked up once.

    Attributes:
        graph: calls inlined. It is not changed.
        uses: of every leaf node, those of regions too.
        ties: dimensions that are one outside and inside of a node with regions.
        fixed: dimensions that are never split: those a scan goes along, and what a region is given whole.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.uses: list[Use] = []
        self.ties: list[tuple[Dim, Dim]] = []
        self.fixed: list[Dim] = []
        self._together: dict[int, Together] = {}
        self._enter(graph, 1, set())

    def together(self, parts: int) -> Together:
        """The classes of dimensions that divide into so many parts."""
        if parts not in self._together:
            self._together[parts] = Together(self, parts)
        return self._together[parts]

    def _enter(self, graph: Graph, times: int, seen: set[Graph]) -> None:
        if graph in seen:
            return
        seen.add(graph)
        for node in graph:
            if not node.regions:
                found = factors_of(node)
                self.uses.append(
                    Use(
                        node,
                        found.operands,
                        found.results,
                        found.sizes,
                        frozenset(found.reduced),
                        found.whole,
                        times,
                    )
                )
                continue
            self._tie(node)
            for region in node.regions:
                self._enter(region, times * max(trip_count(node), 1), seen)

    def _tie(self, node: Node) -> None:
        for slot in slots(node):
            outside = [] if slot.operand is None else [node.operands[slot.operand]]
            outside += [] if slot.result is None else [node.results[slot.result]]
            inside = [node.regions[r].inputs[i] for r, i in slot.inputs]
            inside += [node.regions[r].outputs[i] for r, i in slot.outputs]
            if slot.kind == "opaque":
                self.fixed += [(value, dim) for value in (*outside, *inside) for dim in range(value.ndim)]
                continue
            if slot.kind in ("scanned", "stacked"):
                self.fixed += [(value, 0) for value in outside]
                self.ties += [
                    ((value, dim + 1), (each, dim))
                    for value in outside
                    for each in inside
                    for dim in range(each.ndim)
                ]
                continue
            alike = [*outside, *inside]
            self.ties += [((alike[0], dim), (value, dim)) for value in alike[1:] for dim in range(value.ndim)]

    @cached_property
    def values(self) -> list[Value]:
        """Every value, those of regions too."""
        return [
            value
            for graph in self.graph.graphs()
            for value in (*graph.inputs, *(result for node in graph for result in node.results))
        ]


class Together:
    """The classes of dimensions that can be split into a number of equal parts.

    A dimension whose outer part does not divide is alone where it stands: it is not split there.

    Attributes:
        parts: into how many.
        members: of each class its dimensions.
        sums: of each class the bytes that are added up or gathered across devices if it is split.
        breaks: of each class the operations that need it whole.
        gathered: of each class that is gathered somewhere an operation that asks for it.
        near: of each class those that it meets in an operation.
    """

    def __init__(self, program: Program, parts: int) -> None:
        self.program = program
        self.parts = parts
        self._classes: UnionFind[Dim] = UnionFind()
        for a, b in program.ties:
            self._classes.join(a, b)
        for use in program.uses:
            first: dict[int, Dim] = {}
            for value, dims in use.arrays():
                for dim, factors in enumerate(dims):
                    if self._is_open(use, factors):
                        self._classes.join(first.setdefault(factors[0], (value, dim)), (value, dim))
        self.fixed = {self.find(dim) for dim in program.fixed}
        self.members: dict[Dim, list[Dim]] = {}
        for value in program.values:
            for dim, size in enumerate(value.shape):
                if type(size) is int and size > 1 and size % parts == 0:
                    self.members.setdefault(self.find((value, dim)), []).append((value, dim))
        self.sums: dict[Dim, float] = {}
        self.breaks: dict[Dim, list[Use]] = {}
        self.gathered: dict[Dim, Use] = {}
        self.near: dict[Dim, set[Dim]] = {}
        self._look()

    def _is_open(self, use: Use, factors: tuple[int, ...]) -> bool:
        return bool(factors) and factors[0] not in use.whole and use.sizes[factors[0]] % self.parts == 0

    def _is_grouped(self, use: Use, factors: tuple[int, ...]) -> bool:
        """Whether a reshape takes it apart into fewer groups than parts, as queries by their keys' heads.

        It is gathered there, which costs its bytes.
        """
        return use.node.op == "reshape" and len(factors) > 1 and self.parts % use.sizes[factors[0]] == 0

    def find(self, dim: Dim) -> Dim:
        """The class of a dimension."""
        return self._classes.find(dim)

    def of(self, value: Value, dim: int) -> Dim | None:
        """The class of a dimension, None if it cannot be split."""
        found = self.find((value, dim))
        return found if found in self.members and found not in self.fixed else None

    def _look(self) -> None:
        """What splitting each class costs, and which classes meet in an operation."""
        roots: dict[tuple[Dim, Value], None] = {}
        for use in self.program.uses:
            here: set[Dim] = set()
            for k, (value, dims) in enumerate(use.arrays()):
                for dim, factors in enumerate(dims):
                    if not factors or (found := self.of(value, dim)) is None:
                        continue
                    here.add(found)
                    if not self._is_open(use, factors):
                        if k >= len(use.operands) or value.is_const:
                            continue
                        if self._is_grouped(use, factors):
                            self.sums[found] = self.sums.get(found, 0.0) + bytes_of(value) * use.times
                            self.gathered.setdefault(found, use)
                        else:
                            self.breaks.setdefault(found, []).append(use)
                    elif factors[0] in use.reduced and k < len(use.operands):
                        for result in use.node.results:
                            key = (found, _summed(result))
                            if key not in roots:
                                roots[key] = None
                                self.sums[found] = self.sums.get(found, 0.0) + bytes_of(result) * use.times
            for each in here:
                self.near.setdefault(each, set()).update(here - {each})


_LINEAR: Final = frozenset(
    {"add", "add_any", "sub", "neg", "convert_element_type", "reshape", "transpose", "squeeze"}
)


def _summed(value: Value) -> Value:
    """The sum that a partial result goes into; it is added up across devices there, once."""
    while len(value.uses) == 1:
        ((user, _),) = value.uses
        if user.op not in _LINEAR or len(user.results) != 1:
            break
        value = user.results[0]
    return value
