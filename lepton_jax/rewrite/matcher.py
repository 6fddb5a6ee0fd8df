"""Finding a pattern in a graph: first its skeleton, then proof that it is exactly that.

The skeleton (which operations feed which) is cheap to compare but says nothing of
parameters. A rule that trusted it would rewrite programs that only look alike. So after a
skeleton match the pattern is traced again with the program's own shapes, dtypes and attributes, and the
result must equal what the program has, parameter by parameter.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.facts import facts_of, number_facts
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.ir.inline import inline_call, is_plain_call
from lepton_jax.ir.structure import COMMUTATIVE, graph_key
from lepton_jax.rewrite.errors import RuleError

Static = tuple[tuple[str, Any], ...]
Binding = dict[Value, Value]


@dataclass(frozen=True, eq=False)
class Template:
    """A pattern traced at example shapes.

    Attributes:
        pattern: the JAX function.
        graph: its graph; calls are written in line.
        root: the node that makes its result.
        names: the names of its array parameters.
        captures: for each attribute, the (root-relative) node and parameter that hold it.
        options: the alternative that was traced.
    """

    pattern: Callable[..., Any]
    graph: Graph
    root: Node
    names: tuple[str, ...]
    captures: tuple[tuple[str, Node, str], ...]
    options: Static


@dataclass(frozen=True, eq=False)
class Match:
    """Where a pattern was found.

    Attributes:
        values: what each array parameter of the pattern stands for.
        static: the attributes with the program's values, and the options.
        nodes: the program's nodes that make up the pattern, root first.
    """

    values: dict[str, Value]
    static: dict[str, Any]
    nodes: tuple[Node, ...]

    def shared_interior(self) -> Node | None:
        """A node below the root that is also read from outside the match, if there is one."""
        inside = set(self.nodes)
        for node in self.nodes[1:]:
            if any(user not in inside for value in node.results for user, _ in value.uses):
                return node
        return None


def compile_template(
    pattern: Callable[..., Any],
    example: Sequence[Any],
    attributes: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Template:
    """Trace a pattern at example shapes.

    Raises:
        RuleError: the pattern has not one result made by an operation, or an attribute's
            example value is no parameter of any of its operations.
    """
    graph = _traced(pattern, tuple(example), tuple({**attributes, **options}.items()))
    root = graph.outputs[0].node if len(graph.outputs) == 1 else None
    if root is None:
        raise RuleError(f"the pattern {pattern.__name__} must have one result, made by an operation")
    captures = tuple((name, *_holder(graph, pattern, name, value)) for name, value in attributes.items())
    names = tuple(inspect.signature(pattern).parameters)[: len(example)]
    return Template(pattern, graph, root, names, captures, tuple(options.items()))


def _holder(graph: Graph, pattern: Callable[..., Any], name: str, value: Any) -> tuple[Node, str]:
    for node in graph:
        for key, held in node.params.items():
            if type(held) is type(value) and held == value:
                return node, key
    raise RuleError(
        f"no operation of the pattern {pattern.__name__} has a parameter {value!r} (attribute {name})"
    )


def _traced(pattern: Callable[..., Any], avals: tuple[Any, ...], static: Static) -> Graph:
    closed = _jax.trace_flat(lambda *args: [pattern(*args, **dict(static))], avals)
    graph = from_jaxpr(closed, pattern.__name__)
    while calls := [node for node in graph if is_plain_call(node)]:
        for node in calls:
            inline_call(node)
    for node in reversed(graph):
        if node.is_dead:
            graph.erase(node)
    return graph


@functools.lru_cache(maxsize=4096)
def _traced_in(
    pattern: Callable[..., Any],
    avals: tuple[Any, ...],
    static: Static,
    context: Any,
    x64: bool,
    precision: Any,
) -> Graph:
    """The pattern at a program's shapes, in the program's equation context."""
    with _jax.Placement() as placement, placement.at(None, context):
        return _traced(pattern, avals, static)


def match(template: Template, node: Node) -> Match | str:
    """Find a pattern that ends in `node`.

    Returns:
        The match, or why there is none: empty if the program is not even similar.
    """
    if node.op != template.root.op or len(node.results) != 1:
        return ""
    search = _Search(exact=False)
    for binding in search.solve([(template.root.result, node.result)], {}):
        found = _prove(template, node, binding)
        if isinstance(found, Match):
            return found
        search.reason = found
    return search.reason


def _prove(template: Template, node: Node, binding: Binding) -> Match | str:
    """Trace the pattern at the matched shapes and require it to be what the program has."""
    if any(value not in binding for value in template.graph.inputs):
        return "a parameter of the pattern does not occur in it"
    values = [binding[value] for value in template.graph.inputs]
    static = dict(template.options)
    for name, holder, key in template.captures:
        found = binding[holder.results[0]].node
        assert found is not None
        static[name] = found.params[key]
    try:
        graph = _traced_in(
            template.pattern,
            tuple(value.aval for value in values),
            tuple(static.items()),
            node.context,
            _jax.x64_enabled(),
            _jax.matmul_precision(),
        )
    except (TypeError, ValueError) as error:
        return f"the pattern cannot be traced at these shapes: {str(error).splitlines()[0]}"
    search = _Search(exact=True)
    bound: Binding = dict(zip(graph.inputs, values, strict=True))
    exact = next(search.solve([(graph.outputs[0], node.result)], bound), None)
    if exact is None:
        return search.reason or "it only looks alike"
    nodes = [v.node for v in (node.result, *exact.values()) if v.node is not None]
    inputs = set(values)
    inside = [n for n in dict.fromkeys(nodes) if not any(value in inputs for value in n.results)]
    return Match(dict(zip(template.names, values, strict=True)), static, tuple(inside))


class _Search:
    """Backtracking search for an assignment of the pattern's values to the program's."""

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self.reason = ""

    def solve(self, pending: list[tuple[Value, Value]], bound: Binding) -> Iterator[Binding]:
        """Every way to let the pending pairs (pattern value, program value) agree."""
        if not pending:
            yield bound
            return
        (pattern, value), rest = pending[0], pending[1:]
        if pattern in bound:
            if _same(bound[pattern], value):
                yield from self.solve(rest, bound)
            return
        splat = facts_of(pattern).splat if pattern.node is not None or pattern.is_const else None
        if splat is not None:
            if _is_splat(value, splat, self.exact) and (not self.exact or value.shape in (pattern.shape, ())):
                yield from self.solve(rest, {**bound, pattern: value})
            else:
                self.fail(bound, f"expected the constant {splat}")
            return
        if pattern.is_const:
            if _same_array(pattern, value):
                yield from self.solve(rest, bound)
            return
        if pattern.node is None:
            yield from self.solve(rest, {**bound, pattern: value})
            return
        yield from self.descend(pattern, value, rest, bound)

    def descend(
        self, pattern: Value, value: Value, rest: list[tuple[Value, Value]], bound: Binding
    ) -> Iterator[Binding]:
        want, have = pattern.node, value.node
        assert want is not None
        if have is None or have.op != want.op or value.index != pattern.index:
            self.fail(bound, f"expected {want.op}, found {'an input' if have is None else have.op}")
            return
        if len(have.operands) != len(want.operands):
            self.fail(bound, f"{want.op} has {len(have.operands)} operands, not {len(want.operands)}")
            return
        if self.exact and (difference := _difference(want, have)):
            self.fail(bound, difference)
            return
        bound = {**bound, **dict(zip(want.results, have.results, strict=True))}
        orders = [have.operands]
        if want.op in COMMUTATIVE:
            orders.append(have.operands[::-1])
        for order in orders:
            yield from self.solve([*zip(want.operands, order, strict=True), *rest], bound)

    def fail(self, bound: Binding, reason: str) -> None:
        """Keep a reason once more than the root was found."""
        if len(bound) > 1 and not self.reason:
            self.reason = reason


def _same(a: Value, b: Value) -> bool:
    return a is b or (a.is_const and b.is_const and _same_array(a, b))


def _same_array(a: Value, b: Value) -> bool:
    if not (a.is_const and b.is_const) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.const is b.const:
        return True
    left, right = _jax.plain_constant(a.const), _jax.plain_constant(b.const)
    return left is not None and right is not None and left.tobytes() == right.tobytes()


def _is_splat(value: Value, wanted: Any, exact: bool) -> bool:
    """Whether a value is a number throughout; to the bit, or as a number, of another dtype perhaps."""
    splat = number_facts(value).splat
    if splat is None:
        return False
    have, want = np.asarray(splat), np.asarray(wanted)
    if not exact:
        return bool(have == want) or bool(have != have and want != want)
    return have.dtype == want.dtype and have.tobytes() == want.tobytes()


def _difference(want: Node, have: Node) -> str:
    """The first parameter in which two nodes of one operation differ, in words; empty if none."""
    if want.op.startswith("custom_"):
        return f"{want.op} carries a rule of its own, which cannot be compared"
    for key in want.params.keys() | have.params.keys():
        if key == "weak_type":
            continue
        left, right = want.params.get(key), have.params.get(key)
        if not _equal(left, right):
            return f"{have.op} has {key}={right}, the pattern {left}"
    for left, right in zip(want.regions, have.regions, strict=True):
        if graph_key(left) != graph_key(right):
            return f"the bodies of {have.op} differ"
    return ""


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except ValueError:  # arrays
        return bool(np.array_equal(a, b))
