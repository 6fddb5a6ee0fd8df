"""Whether a rewrite pays: the estimated time of what it makes against that of what it makes superfluous."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from lepton_jax.ir.binding import parameters_of
from lepton_jax.ir.cost import graph_cost, node_cost
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.ir.regions import LOOPS, outer_of, trip_count
from lepton_jax.rewrite.context import PassContext
from lepton_jax.rewrite.replacement import Rewrite, traced

WORTH: Final = 0.9
"""A rewrite pays if it takes less than this part of the time: rules are not to trade places over nothing."""

_MOST_NODES: Final = 512
_DISREGARDED: Final[ContextVar[bool]] = ContextVar("disregarded", default=False)
_UNKNOWN_TRIPS: Final = 100
"""A while loop is taken to go round so often."""


def why_not(outcome: Value | Rewrite, node: Node, ctx: PassContext) -> str | None:
    """Why putting `outcome` in place of a node does not pay on the target, or None where it does."""
    if _DISREGARDED.get():
        return None
    before, after = compared(outcome, node, ctx)
    if after < WORTH * before:
        return None
    return f"takes {after * 1e6:.3g} µs instead of {before * 1e6:.3g} on {ctx.rates.name}, as estimated"


@contextmanager
def disregarded() -> Iterator[None]:
    """Rules fire whether or not they pay: for tests, whose programs are too small for anything to pay."""
    token = _DISREGARDED.set(True)
    try:
        yield
    finally:
        _DISREGARDED.reset(token)


def is_disregarded() -> bool:
    """Whether rules are to fire even where they do not pay; for guards that have a measure of their own."""
    return _DISREGARDED.get()


def compared(outcome: Value | Rewrite, node: Node, ctx: PassContext) -> tuple[float, float]:
    """Estimated seconds of what an outcome makes superfluous, and of what it computes instead.

    Inside a loop, what does not depend on the iteration counts once for the whole loop, since XLA
    computes it in front of the loop: a rewrite that mixes it with what changes does not look cheap.
    """
    read = {outcome} if isinstance(outcome, Value) else set(outcome.values)
    before = sum(_seconds(n, fixed, ctx) for n, fixed in _with_fixed(superfluous(node, read)))
    return before, 0.0 if isinstance(outcome, Value) else seconds_of(outcome, node, ctx)


def why_not_late(outcome: Rewrite, node: Node, ctx: PassContext, *, in_line: bool = False) -> str | None:
    """Why an outcome does not pay where `prepare` computes what depends on parameters alone, or None.

    For rules that take an operand apart: where the program is cut in two, what it was made of costs nothing,
    if it is made of parameters.

    Args:
        in_line: ask of programs that are run whole too, so that weights have one form in both.
    """
    if _DISREGARDED.get() or not ctx.params or not (ctx.is_bound or in_line):
        return None
    early = parameters_of(_top(node), ctx.params)
    gone = superfluous(node, set(outcome.values))
    if not any(early.get(v) for each in gone for v in each.operands):
        return None
    fresh = _graph(traced(outcome, node))
    known = {a: v.is_const or v in early for a, v in zip(fresh.inputs, outcome.values, strict=True)}
    before = sum(ctx.seconds(node_cost(n)) for n in gone if not all(v in early for v in n.results))
    after = 0.0
    for made in fresh:
        is_early = all(v.is_const or known.get(v, False) for v in made.operands)
        known.update(dict.fromkeys(made.results, is_early))
        after += 0.0 if is_early else ctx.seconds(node_cost(made))
    if after < WORTH * before:
        return None
    times = f"{after * 1e6:.3g} µs instead of {before * 1e6:.3g}"
    return f"of parameters alone it is made once, and each call would take {times}"


def _top(node: Node) -> Graph:
    """The whole program that a node is in."""
    graph = node.graph
    while graph is not None and graph.parents and graph.parents[0].graph is not None:
        graph = graph.parents[0].graph
    assert graph is not None
    return graph


def seconds_of(outcome: Rewrite, node: Node, ctx: PassContext) -> float:
    """Estimated seconds of what a rewrite computes where a node stands."""
    fresh = _graph(traced(outcome, node))
    trips = trips_of(node)
    if trips == 1:
        return ctx.seconds(graph_cost(fresh))
    fixed = {a: is_fixed(v) for a, v in zip(fresh.inputs, outcome.values, strict=True)}
    after = 0.0
    for made in fresh:
        always = all(v.is_const or fixed.get(v, False) for v in made.operands)
        fixed.update(dict.fromkeys(made.results, always))
        after += ctx.seconds(node_cost(made)) / (trips if always else 1)
    return after


def superfluous(node: Node, read: set[Value]) -> list[Node]:
    """The nodes that nothing needs once `node` is gone, itself first, if the values in `read` stay needed."""
    found = {node: None}
    stack = [v.node for v in node.operands]
    while stack and len(found) < _MOST_NODES:
        maker = stack.pop()
        if maker is None or maker in found or maker.effects or not read.isdisjoint(maker.results):
            continue
        if all(isinstance(user, Node) and user in found for v in maker.results for user, _ in v.uses):
            found[maker] = None
            stack += [v.node for v in maker.operands]
    return list(found)


def is_fixed(value: Value) -> bool:
    """Whether a value in the body of a loop is the same on every iteration."""
    stack, seen = [value], set()
    while stack:
        current = stack.pop()
        if current.is_const or current in seen:
            continue
        seen.add(current)
        if len(seen) > _MOST_NODES:
            return False
        if current.node is not None:
            if current.node.effects:
                return False
            stack += current.node.operands
        elif not _is_loop_constant(current):
            return False
    return True


def _is_loop_constant(value: Value) -> bool:
    region = value.graph
    loop = _loop_of(region)
    return loop is not None and region is not None and value in outer_of(loop, region)


def _loop_of(region: Graph | None) -> Node | None:
    """The only loop that a graph is the body of, if it is one."""
    parents = [] if region is None else list(region.parents)
    return parents[0] if len(parents) == 1 and parents[0].op in LOOPS else None


def trips_of(node: Node) -> int:
    """How often the loop goes round whose body a node is in; 1 outside of loops."""
    loop = _loop_of(node.graph)
    if loop is None:
        return 1
    return _UNKNOWN_TRIPS if loop.op == "while" else max(trip_count(loop), 1)


def _with_fixed(nodes: list[Node]) -> list[tuple[Node, int]]:
    """Each node with the number of iterations that share its work."""
    trips = trips_of(nodes[0])
    return [(n, trips if trips > 1 and all(is_fixed(v) for v in n.operands) else 1) for n in nodes]


def _seconds(node: Node, shared: int, ctx: PassContext) -> float:
    return ctx.seconds(node_cost(node)) / shared


@functools.lru_cache(maxsize=1024)
def _graph(closed: Any) -> Graph:
    """The graph of a traced replacement, for its cost alone."""
    return from_jaxpr(closed, "replacement")
