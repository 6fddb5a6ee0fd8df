"""Values and the nodes that make and read them: what a `Graph` consists of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lepton_jax.ir._facts.lattice import Facts
    from lepton_jax.ir.graph import Graph

RETURN: Final = "return"


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

    def readers(self, through: Callable[[Node], bool]) -> Iterator[tuple[Node, int]]:
        """The nodes that read it, and as which operand.

        Args:
            through: nodes that do not count: in their place stand those that read their results.
        """
        for node, position in self.uses:
            if through(node):
                for result in node.results:
                    yield from result.readers(through)
            else:
                yield node, position

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
        read_otherwise(self, new)

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
            for result in _given_on(node):
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
            region.gain_parent(self)

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
        read_otherwise(old, value)

    def set_operands(self, values: Sequence[Value]) -> None:
        """Read `values` from now on, however many there are."""
        before = self.operands
        for position, old in enumerate(before):
            old.uses.pop((self, position), None)
        self.operands = list(values)
        for position, value in enumerate(self.operands):
            value.uses[self, position] = None
        self.touch()
        read_otherwise(*before, *self.operands)

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


def _given_on(node: Node) -> list[Value]:
    """What a node makes; of one that returns what it reads, what those that run its graph make."""
    if node.op != RETURN:
        return node.results
    return [] if node.graph is None else [value for parent in node.graph.parents for value in parent.results]


def read_otherwise(*values: Value) -> None:
    """Note that values have other readers now."""
    for value in values:
        node = value.node
        if node is not None and node.graph is not None:
            node.changed = node.graph.version
