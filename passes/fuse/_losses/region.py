"""The part of a program that works on logits row by row, found from the product that makes them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes.fuse._losses.cuts import Cuts, cuts_of, split_of


class Whole(Exception):
    """Why a program cannot be run on a part of the rows."""


class Region:
    """The operations that read the logits, and read what these make, as long as that is as large.

    Grows from the product until no array as large as half the logits goes in from an operation or
    out, and nothing outside stands between two operations inside.

    Attributes:
        parts: how many rows there are; every cut dimension has as many parts of equal length.
        nodes: the operations, each with the dimension of its result that is cut; None for sums
            over the rows.
        cut: the dimension along which each value is cut.

    Raises:
        Whole: there is no such part.
    """

    def __init__(self, root: Node, d: int) -> None:
        self.root = root
        self.parts = int(root.result.shape[d])
        self.large = math.prod(root.result.shape) // 2
        self.nodes: dict[Node, int | None] = {}
        self.cut: dict[Value, int] = {}
        self._pending: list[Value] = []
        self._add(root, d)
        self._grow()
        self._close()

    @property
    def graph(self) -> Graph:
        """The graph that it is a part of."""
        graph = self.root.graph
        assert graph is not None
        return graph

    def is_large(self, value: Value) -> bool:
        """Whether a value that is cut is of the size of the logits."""
        return bool(math.prod(value.shape) >= self.large)

    def outputs(self) -> list[Value]:
        """What is read of it outside, in order."""
        return [
            v for node in self.ordered() for v in node.results if any(u not in self.nodes for u in v.users())
        ]

    def ordered(self) -> list[Node]:
        """Its operations in program order."""
        return [node for node in self.graph if node in self.nodes]

    def _add(self, node: Node, d: int | None) -> None:
        if node in self.nodes:
            if self.nodes[node] != d:
                raise Whole(f"{node.op} would be cut in two ways")
            return
        if not all(v.is_static for v in (*node.operands, *node.results)):
            raise Whole("an array has a dimension of unknown length")
        cuts = self.cuts(node, d)
        if cuts is None:
            raise Whole(f"{node.op} needs all rows at once")
        self.nodes[node] = d
        for value, at in zip(node.operands, cuts, strict=True):
            if at is not None:
                self._cut(value, at)
        if d is not None:
            self._cut(node.result, d)

    def cuts(self, node: Node, d: int | None) -> Cuts | None:
        """What a node reads of its operands for a part of its result, or of its sum."""
        if d is None:
            return self._summed(node)
        if node.op != "reshape":
            return cuts_of(node, d)
        at = split_of(node.operands[0].shape, node.result.shape, d, self.parts)
        return None if at is None or len(node.operands) > 1 else [at]

    def _summed(self, node: Node) -> Cuts | None:
        """For a sum over the rows."""
        found = [self.cut.get(v) for v in node.operands]
        if node.op == "reduce_sum" and found[0] in node.params["axes"]:
            return found
        if node.op != "dot_general":
            return None
        (left, right), _ = node.params["dimension_numbers"]
        if found[0] in left:
            return [found[0], int(right[tuple(left).index(found[0])])]
        return [int(left[tuple(right).index(found[1])]), found[1]] if found[1] in right else None

    def _cut(self, value: Value, d: int) -> None:
        if value.shape[d] % self.parts:
            raise Whole("an array has another number of rows")
        if self.cut.setdefault(value, d) != d:
            raise Whole("an array would be cut in two ways")
        self._pending.append(value)

    def _grow(self) -> None:
        """Take in what makes and reads large arrays."""
        while self._pending:
            value = self._pending.pop()
            if not self.is_large(value):
                continue
            maker = value.node
            if maker is not None and maker not in self.nodes:
                self._add(maker, self.cut[value])
            if maker is None:
                continue
            for user in value.users():
                if user not in self.nodes:
                    self._join(user, value)

    def _join(self, user: Node, value: Value) -> None:
        """Take in a reader of a large array."""
        if user is self.graph.ret:
            raise Whole("an array of the size of the logits is a result of the program")
        d = self.cut[value]
        places = [i for i, v in enumerate(user.operands) if v is value]
        for at in range(user.results[0].ndim):
            cuts = self.cuts(user, at)
            if cuts is not None and all(cuts[i] == d for i in places):
                self._add(user, at)
                return
        self._add(user, None)

    def _close(self) -> None:
        """Take in what stands between two operations inside."""
        while True:
            after = descendants(self.nodes)
            needed = [v for node in self.nodes for v in node.operands if v.node in after]
            if not needed:
                return
            for value in needed:
                if value not in self.cut:
                    raise Whole("what is computed of a row depends on all of them")
                assert value.node is not None
                if value.node not in self.nodes:
                    self._add(value.node, self.cut[value])
            self._grow()

    def check(self) -> None:
        """See that nothing inside reads a sum over the rows, or all rows of what is cut inside.

        Raises:
            Whole: something does.
        """
        for node, d in self.nodes.items():
            for value, at in zip(node.operands, self.cuts(node, d) or (), strict=True):
                if value.node in self.nodes and (at is None or self.cut.get(value) != at):
                    raise Whole("what is computed of a row depends on all of them")
        if any(self.is_large(v) for v in self.outputs() if v in self.cut):
            raise Whole("an array of the size of the logits is read as a whole")


def descendants(nodes: Iterable[Node]) -> set[Node]:
    """The nodes outside that depend on some nodes."""
    inside = set(nodes)
    found: set[Node] = set()
    stack = list(inside)
    while stack:
        for value in stack.pop().results:
            for user, _ in value.uses:
                if user not in found and user not in inside:
                    found.add(user)
                    stack.append(user)
    return found
