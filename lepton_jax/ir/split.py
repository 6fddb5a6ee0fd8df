"""A program in two: what depends on parameters alone, run once, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.binding import Sources, is_unnamed, parameters_of
from lepton_jax.ir.content import VARY
from lepton_jax.ir.cost import bytes_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import copy_node

_VIEWS: Final = frozenset({"reshape", "squeeze", "expand_dims", "broadcast_in_dim", "stop_gradient", VARY})
"""Operations that do not touch data, where they do not make more of it."""

_MOVES: Final = _VIEWS | {"transpose", "rev"}

_CHEAP: Final = frozenset(
    {
        *_MOVES,
        *("convert_element_type", "iota", "slice", "concatenate", "pad", "select_n"),
        *("add", "sub", "mul", "div", "neg", "max", "min", "abs", "sign", "floor", "round", "clamp"),
        *("and", "or", "xor", "not", "eq", "ne", "lt", "le", "gt", "ge", "copy"),
        *("shift_left", "shift_right_logical", "shift_right_arithmetic"),
    }
)
"""Operations that XLA computes on the way to whoever reads them."""


_NOTHING: Final[frozenset[Node]] = frozenset()


@dataclass(frozen=True)
class Split:
    """A program in two parts.

    Attributes:
        prepare: from the parameters, all of them in the order of the inputs, to what is kept.
        apply: from what is kept and the other inputs, in order, to the outputs.
        sources: for each array that is kept, the positions of the inputs that it is made of, and named after.
    """

    prepare: Graph
    apply: Graph
    sources: tuple[tuple[int, ...], ...]


def split(graph: Graph, params: Collection[int]) -> Split:
    """Cut a program at its binding time.

    What depends on nothing but parameters moves to `prepare`, unless it is cheap to compute and larger
    than what it is made of (a broadcast bias), is the same data in another shape, or only moves data that
    is kept in any case (the transpose of a tied embedding). What depends on no parameter stays in `apply`.
    The regions of loops and branches stay whole; the pass `early` empties them first.

    Args:
        graph: the program; it is not changed.
        params: the positions of the parameters among its inputs.

    Returns:
        The two graphs. Equal parameters and inputs give what the graph gives, bit for bit, as far as
        XLA rounds both the same.
    """
    wanted = sorted(params)
    made_of = names = parameters_of(graph, wanted)
    if any(is_unnamed(node) for node in graph.walk()):
        names = parameters_of(graph, wanted, named=True)
    kept = _kept(graph, made_of)
    given = [graph.inputs[i] for i in wanted]
    late = [value for i, value in enumerate(graph.inputs) if i not in set(wanted)]
    effects = frozenset(node for node in graph if node.effects)
    return Split(
        prepare=part(f"prepare_{graph.name}", graph, given, kept),
        apply=part(graph.name, graph, [*kept, *late], graph.outputs, effects),
        sources=tuple(tuple(sorted(names[value] or made_of[value])) for value in kept),
    )


def _kept(graph: Graph, made_of: Sources) -> list[Value]:
    """The early values that are kept, in program order."""
    late = [node for node in graph if not all(v in made_of for v in node.results)]
    read = (v for node in (*late, graph.ret) for v in node.operands)
    return frontier(graph, (v for v in read if made_of.get(v)), lambda v: bool(made_of.get(v)))


def frontier(graph: Graph, read: Iterable[Value], is_bound: Callable[[Value], bool]) -> list[Value]:
    """What to keep so that the values can be computed cheaply.

    Args:
        read: the values that are wanted.
        is_bound: whether a value can be kept, and is worth it: depends on parameters.
    """
    kept = dict.fromkeys(read)
    settled = False
    while not settled:
        settled = True
        for value in list(kept):
            parts = _cheaper(value, kept, is_bound)
            if parts is not None:
                del kept[value]
                kept.update(dict.fromkeys(parts))
                settled = False
    order = {v: i for i, v in enumerate(_values(graph))}
    return sorted(kept, key=lambda v: order[v])


def _cheaper(value: Value, kept: Collection[Value], is_bound: Callable[[Value], bool]) -> list[Value] | None:
    """What to keep in place of a value, if that is better."""
    node = value.node
    if node is None or node.op not in _CHEAP:
        return None
    parts = [v for v in dict.fromkeys(node.operands) if is_bound(v)]
    before, after = sum(bytes_of(v) for v in parts), bytes_of(value)
    if before == after and node.op in _MOVES:
        base = _base(value)
        is_free = node.op in _VIEWS or any(_base(v) is base for v in kept if v is not value)
        return parts if is_free else None
    return parts if before < after else None


def _base(value: Value) -> Value:
    """What a value is the same data as."""
    while value.node is not None and value.node.op in _MOVES:
        inner = value.node.operands[0]
        if bytes_of(inner) != bytes_of(value):
            return value
        value = inner
    return value


def _values(graph: Graph) -> Iterator[Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.results


def part(
    name: str, graph: Graph, given: list[Value], wanted: list[Value], always: frozenset[Node] = _NOTHING
) -> Graph:
    """The graph that computes some values of another from some, and runs some nodes in any case.

    Without such nodes its order is that in which the values need them, whatever else stands in the other.
    """
    made = Graph(name, [v.aval for v in given])
    env = dict(zip(given, made.inputs, strict=True))
    needed = _needed([*wanted, *(v for node in always for v in node.operands)], env)
    order = [node for node in graph if node in always or node in needed] if always else needed
    for node in order:
        copy = copy_node(node, [v if v.is_const else env[v] for v in node.operands])
        made.append(copy)
        env.update((old, new) for old, new in zip(node.results, copy.results, strict=True) if old not in env)
    made.set_outputs([v if v.is_const else env[v] for v in wanted])
    return made


def _needed(wanted: Iterable[Value], given: Collection[Value]) -> dict[Node, None]:
    """The nodes that make some values of others, each after what it reads."""
    found: dict[Node, None] = {}
    stack = [(value, False) for value in reversed(list(wanted))]
    while stack:
        value, is_read = stack.pop()
        node = value.node
        if node is None or value in given or node in found:
            continue
        if is_read:
            found[node] = None
            continue
        stack.append((value, True))
        stack += [(operand, False) for operand in reversed(node.operands)]
    return found
