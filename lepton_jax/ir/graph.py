"""The program as a graph: values, nodes, and graphs that hold regions.

A `Graph` is a list of `Node`s in program order, in static single assignment: every
`Value` is an input of the graph, a constant, or a result of exactly one node. A node
with regions (scan, cond, ...) holds further graphs; these see only their own inputs.
Passes edit graphs in place through the methods here, which keep the use lists right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lepton_jax.ir.facts import Facts

RETURN: Final = "return"
_CLOCK: Final = itertools.count(1)


class _NoConstant:
    """The type of `NO_CONSTANT`: an array may be any object, so None cannot say "none"."""

    def __repr__(self) -> str:
        return "NO_CONSTANT"


NO_CONSTANT: Final = _NoConstant()


class Value:
    """One array of the program.

    Attributes:
        aval: its abstract value (shape, dtype, weak type, sharding), as JAX has it.
        node: the node whose result it is; None for inputs and constants.
        index: its position among the inputs or among the results of `node`.
        const: the array of a constant, or `NO_CONSTANT`.
        literal: whether JAX wrote the constant in line (a scalar).
        graph: for an input, the graph whose input it is.
        uses: every (node, operand position) that reads it, in insertion order.
        facts: what `facts.facts_of` has found out, kept here because it stays true.
    """

    __slots__ = ("aval", "const", "facts", "graph", "index", "literal", "node", "uses")

    def __init__(
        self,
        aval: Any,
        node: Node | None = None,
        index: int = 0,
        const: Any = NO_CONSTANT,
        literal: bool = False,
    ) -> None:
        self.aval = aval
        self.node = node
        self.index = index
        self.const = const
        self.literal = literal
        self.graph: Graph | None = None
        self.uses: dict[tuple[Node, int], None] = {}
        self.facts: Facts | None = None

    @property
    def shape(self) -> tuple[Any, ...]:
        """Its shape; empty for what has none."""
        return getattr(self.aval, "shape", ())

    @property
    def dtype(self) -> Any:
        """Its dtype; None for what has none."""
        return getattr(self.aval, "dtype", None)

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    @property
    def is_const(self) -> bool:
        """Whether it is a constant."""
        return self.const is not NO_CONSTANT

    @property
    def op(self) -> str | None:
        """The operation that makes it, or None for inputs and constants."""
        return None if self.node is None else self.node.op

    @property
    def is_static(self) -> bool:
        """Whether every dimension is a plain integer (not symbolic)."""
        return all(type(d) is int for d in self.shape)

    def users(self) -> list[Node]:
        """The nodes that read it, each once, in order."""
        return list(dict.fromkeys(node for node, _ in self.uses))

    def replace_uses(self, new: Value) -> None:
        """Let every reader of this value read `new` instead."""
        if new is self:
            return
        if new.is_const and (self.facts is None or self.facts.constant is None):
            self.renew_facts()
        graph: Graph | None = None
        for node, position in self.uses:
            node.operands[position] = new
            new.uses[node, position] = None
            node.touch()
            graph = node.graph
        self.uses = {}
        if graph is not None and not new.is_const:
            graph.replaced.pop(new, None)
            graph.replaced[self] = new
        _read_otherwise(self, new)

    def renew_facts(self) -> None:
        """Forget what is known of all that it feeds: another takes its place, of which more is known.

        Nodes whose results are forgotten count as changed.
        """
        stack = self.users()
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            node.touch()
            for region in node.regions:
                region.forget_facts()
            for result in node.results if node.op != RETURN else _results_of(node.graph):
                if result.facts is not None:
                    result.facts = None
                    stack += result.users()

    def __repr__(self) -> str:
        short = getattr(self.aval, "str_short", None)
        return f"Value({short(short_dtypes=True) if short else self.aval})"


class Node:
    """One operation.

    Attributes:
        op: the name of its primitive.
        primitive: the JAX primitive that is bound on export.
        operands: the values it reads.
        results: the values it makes.
        params: the primitive's parameters; for a node with regions those of
            `regions.py`, without the jaxprs.
        regions: the graphs it runs.
        raw: the parameters as traced, to bind an untouched node verbatim; None for a
            node whose interface a pass has changed.
        source: JAX's source information (traceback and name stack).
        context: JAX's equation context (mesh, compute type, metadata).
        effects: JAX's effects; a node with effects is never moved or removed.
        rule: the chain of rules that made it, newest first, or None.
        changed: its graph's version when it, or who reads its results, last changed.
    """

    __slots__ = (
        "changed",
        "context",
        "effects",
        "graph",
        "next",
        "op",
        "operands",
        "params",
        "prev",
        "primitive",
        "raw",
        "regions",
        "results",
        "rule",
        "source",
    )

    def __init__(
        self,
        op: str,
        primitive: Any,
        operands: Iterable[Value],
        avals: Sequence[Any],
        params: Mapping[str, Any],
        *,
        regions: Sequence[Graph] = (),
        raw: Mapping[str, Any] | None = None,
        source: Any = None,
        context: Any = None,
        effects: frozenset[Any] = frozenset(),
        rule: RuleChain | None = None,
    ) -> None:
        self.op = op
        self.primitive = primitive
        self.operands = list(operands)
        self.results = [Value(aval, self, i) for i, aval in enumerate(avals)]
        self.params = params
        self.regions = list(regions)
        self.raw = raw
        self.source = source
        self.context = context
        self.effects = effects
        self.rule = rule
        self.changed = 0
        self.graph: Graph | None = None
        self.prev: Node | None = None
        self.next: Node | None = None
        for i, operand in enumerate(self.operands):
            operand.uses[self, i] = None
        for region in self.regions:
            if region.parents:
                region.forget_facts()
            region.parents.append(self)

    @property
    def result(self) -> Value:
        """The only result of a node with one result."""
        (value,) = self.results
        return value

    @property
    def alive(self) -> bool:
        """Whether it is still part of a graph."""
        return self.graph is not None

    @property
    def is_dead(self) -> bool:
        """Whether nobody reads its results and it has no effect."""
        if self.effects:
            return False
        for value in self.results:  # noqa: SIM110 — asked so often that any(...) is too slow
            if value.uses:
                return False
        return True

    @property
    def scope(self) -> str:
        """The name stack: `jax.named_scope`s and Flax module paths, joined by slashes."""
        return "" if self.source is None else str(self.source.name_stack)

    def is_pristine(self) -> bool:
        """Whether it can be bound as it was traced: no region in it was changed."""
        return self.raw is not None and all(region.is_pristine() for region in self.regions)

    def set_operand(self, position: int, value: Value) -> None:
        """Read `value` at `position` from now on."""
        old = self.operands[position]
        old.uses.pop((self, position), None)
        self.operands[position] = value
        value.uses[self, position] = None
        self.touch()
        _read_otherwise(old, value)

    def set_operands(self, values: Sequence[Value]) -> None:
        """Read `values` from now on, however many there are."""
        before = self.operands
        for position, old in enumerate(before):
            old.uses.pop((self, position), None)
        self.operands = list(values)
        for position, value in enumerate(self.operands):
            value.uses[self, position] = None
        self.touch()
        _read_otherwise(*before, *self.operands)

    def set_results(self, values: Sequence[Value]) -> None:
        """Make `values` its results (those left out must have no uses)."""
        for index, value in enumerate(values):
            value.node, value.index = self, index
        self.results = list(values)
        self.touch()

    def touch(self) -> None:
        """Note a change."""
        if self.graph is not None:
            self.graph.touch()
            self.changed = self.graph.version

    def own_regions(self) -> bool:
        """Whether no other node runs the same regions, so that their interface may change."""
        return all(len(region.parents) == 1 for region in self.regions)

    def __repr__(self) -> str:
        return f"Node({self.op})"


class RuleChain:
    """The rules that led to a node, newest first: who made it, from a node made by whom."""

    __slots__ = ("before", "depth", "rule")

    def __init__(self, rule: str, before: RuleChain | None) -> None:
        self.rule = rule
        self.before = before
        self.depth: int = 1 if before is None else before.depth + 1


class Graph:
    """A function: inputs, nodes in program order, outputs.

    Attributes:
        name: the function's name, for printing.
        inputs: its arguments, flat.
        version: grows with each change; no two changes of any graphs give the same.
        jaxpr: the jaxpr it was imported from, or None.
        parents: the nodes whose region it is.
        holders: its nodes that have regions.
        replaced: its values in whose place others are read, with these, since `facts.renew` last looked.
    """

    __slots__ = (
        "_ret",
        "_top",
        "compiled",
        "holders",
        "imported_at",
        "inputs",
        "jaxpr",
        "key",
        "name",
        "parents",
        "replaced",
        "version",
    )

    def __init__(self, name: str, avals: Sequence[Any], jaxpr: Any = None) -> None:
        self.name = name
        self.inputs = [self._input(aval, i) for i, aval in enumerate(avals)]
        self.version = 0
        self.imported_at = -1
        self.key: tuple[int, Any] | None = None
        self.compiled: tuple[int, Callable[..., list[Any]]] | None = None
        self.jaxpr = jaxpr
        self.parents: list[Node] = []
        self.holders: dict[Node, None] = {}
        self.replaced: dict[Value, Value] = {}
        # A ring with two sentinels: `_top` before the first node, `_ret` reads the outputs.
        self._top = Node("", None, (), (), {})
        self._ret = Node(RETURN, None, (), (), {})
        self._top.next, self._ret.prev = self._ret, self._top
        self._top.graph = self._ret.graph = self

    # Reading

    @property
    def outputs(self) -> list[Value]:
        """The values it returns (a copy: use `set_outputs` to change them)."""
        return list(self._ret.operands)

    @property
    def ret(self) -> Node:
        """The node that reads the outputs; `append` inserts before it."""
        return self._ret

    def __iter__(self) -> Iterator[Node]:
        """Its nodes in program order. The node at hand may be erased meanwhile."""
        node = self._top.next
        while node is not self._ret:
            assert node is not None
            if node.graph is not None:
                yield node
            node = node.next

    def __reversed__(self) -> Iterator[Node]:
        """Its nodes, last first. The node at hand may be erased meanwhile."""
        node = self._ret.prev
        while node is not self._top:
            assert node is not None
            if node.graph is not None:
                yield node
            node = node.prev

    def walk(self) -> Iterator[Node]:
        """Every node, those of regions after the node that holds them; shared regions once."""
        seen: set[Graph] = {self}
        stack: list[Iterator[Node]] = [iter(self)]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                continue
            yield node
            for region in reversed(node.regions):
                if region not in seen:
                    seen.add(region)
                    stack.append(iter(region))

    def graphs(self, enter: Callable[[Node], bool] = lambda node: True) -> list[Graph]:
        """This graph and the regions below it, each once, parents before children.

        Args:
            enter: whether to look into the regions of a node (default: all).
        """
        found = {self: None}
        queue = [self]
        for graph in queue:
            for node in graph.holders:
                for region in node.regions if enter(node) else ():
                    if region not in found:
                        found[region] = None
                        queue.append(region)
        return list(found)

    def nodes(self) -> list[Node]:
        """The nodes of `walk`, as they are now."""
        found: list[Node] = []
        seen: set[Graph] = {self}
        waiting = [self._top.next]
        while waiting:
            node = waiting.pop()
            while node is not None and node.graph is not None and node.op != RETURN:
                found.append(node)
                if node.regions:
                    waiting.append(node.next)
                    fresh = [region for region in dict.fromkeys(node.regions) if region not in seen]
                    seen.update(fresh)
                    waiting += [region._top.next for region in reversed(fresh)]
                    break
                node = node.next
        return found

    def num_nodes(self) -> int:
        """How many nodes it has, regions included (shared ones once)."""
        return len(self.nodes())

    def is_pristine(self) -> bool:
        """Whether no pass has changed it or a region in it since it was imported."""
        return all(graph.version == graph.imported_at for graph in self.graphs())

    def total_version(self) -> int:
        """A number that grows when this graph or a region below it changes."""
        return max(graph.version for graph in self.graphs())

    def forget_facts(self) -> None:
        """Drop the facts of all values in it: its inputs get another source."""
        if all(value.facts is None for value in self.inputs):
            return
        now = next(_CLOCK)
        for graph in self.graphs():
            for value in graph.inputs:
                value.facts = None
            for node in graph:
                for value in node.results:
                    value.facts = None
                node.changed = now

    @property
    def is_static(self) -> bool:
        """Whether every shape in it is known (no symbolic dimensions)."""
        values = [*self.inputs, *(value for node in self for value in node.results)]
        return all(value.is_static for value in values)

    # Editing

    def touch(self) -> None:
        """Note a change."""
        self.version = next(_CLOCK)

    def _input(self, aval: Any, index: int = 0) -> Value:
        value = Value(aval, None, index)
        value.graph = self
        return value

    def add_input(self, aval: Any, position: int | None = None) -> Value:
        """A new input at `position` (default: the last)."""
        value = self._input(aval)
        self.inputs.insert(len(self.inputs) if position is None else position, value)
        self._number_inputs()
        return value

    def remove_inputs(self, positions: Iterable[int]) -> None:
        """Drop inputs that nobody reads."""
        gone = set(positions)
        for position in gone:
            if self.inputs[position].uses:
                raise ValueError(f"input {position} of {self.name} is still read")
        self.inputs = [value for i, value in enumerate(self.inputs) if i not in gone]
        self._number_inputs()

    def _number_inputs(self) -> None:
        for index, value in enumerate(self.inputs):
            value.index = index
        self.touch()

    def set_outputs(self, values: Sequence[Value]) -> None:
        """Return `values` from now on."""
        self._ret.set_operands(values)

    def insert(self, node: Node, before: Node) -> Node:
        """Put a new node right before `before` (a node of this graph, or `ret`)."""
        after = before.prev
        assert after is not None
        node.prev, node.next, node.graph = after, before, self
        after.next = before.prev = node
        if node.regions:
            self.holders[node] = None
        node.touch()
        return node

    def append(self, node: Node) -> Node:
        """Put a new node last."""
        return self.insert(node, self._ret)

    def move(self, node: Node, before: Node) -> None:
        """Take a node out of its place and put it before `before`."""
        self._unlink(node)
        self.insert(node, before)

    def erase(self, node: Node) -> None:
        """Remove a node whose results nobody reads."""
        if any(value.uses for value in node.results):
            raise ValueError(f"{node.op} cannot be erased: its results are read")
        for position, operand in enumerate(node.operands):
            operand.uses.pop((node, position), None)
        for region in node.regions:
            region.parents.remove(node)
        self._unlink(node)
        node.graph = None
        _read_otherwise(*node.operands)

    def _unlink(self, node: Node) -> None:
        """Close the ring over a node; its own links stay, so that iterators find the way on."""
        before, after = node.prev, node.next
        assert before is not None and after is not None
        before.next, after.prev = after, before
        self.holders.pop(node, None)
        self.touch()

    def to_text(self, *, scopes: bool = False) -> str:
        """The graph in text form; see `printer.to_text`."""
        from lepton_jax.ir.printer import to_text

        return to_text(self, scopes=scopes)

    def __repr__(self) -> str:
        return f"Graph({self.name}, {len(self.inputs)} inputs)"


def _results_of(region: Graph | None) -> list[Value]:
    """The results of the nodes that run a region."""
    return [] if region is None else [value for node in region.parents for value in node.results]


def _read_otherwise(*values: Value) -> None:
    """Note that values have other readers now."""
    for value in values:
        node = value.node
        if node is not None and node.graph is not None:
            node.changed = node.graph.version


def constant(array: Any, aval: Any, literal: bool = False) -> Value:
    """A constant value.

    It belongs to no node; a graph holds it by reading it.
    """
    return Value(aval, None, 0, array, literal)
