"""Values of a region out to the top of the program, and arrays from there into a region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import add_constant, editable, trip_count
from lepton_jax.passes.loops._parts.scan import add_scanned, add_stacked, is_plain_scan
from lepton_jax.rewrite import PassContext
from lepton_jax.rewrite.replacement import Rewrite, write_before

_ONCE: Final = frozenset({"jit", "closed_call", "core_call", "remat2", "checkpoint", "cond"})

_RULE: Final = "observed-value"


def in_branch(graph: Graph) -> bool:
    """Whether a region stands in a branch, which need not be taken."""
    while graph.parents:
        if graph.parents[0].op == "cond":
            return True
        assert graph.parents[0].graph is not None
        graph = graph.parents[0].graph
    return False


def top(graph: Graph) -> Graph:
    """The whole program that a region stands in."""
    while graph.parents:
        inner = graph.parents[0].graph
        assert inner is not None
        graph = inner
    return graph


def loop_lengths(graph: Graph | None) -> tuple[int, ...]:
    """The lengths of the scans that a region stands in, outermost first."""
    lengths: list[int] = []
    while graph is not None and graph.parents:
        node = graph.parents[0]
        if node.op == "scan":
            lengths.insert(0, trip_count(node))
        graph = node.graph
    return tuple(lengths)


def depth(graph: Graph) -> int | str:
    """How many loops a region stands in, or why nothing can be handed out of it or into it."""
    loops = 0
    while graph.parents:
        if len(graph.parents) > 1:
            return "it is in a function that is called in several places"
        (node,) = graph.parents
        if node.op == "scan" and is_plain_scan(node):
            loops += 1
        elif node.op not in _ONCE or not editable(node):
            return f"it is in a {node.op}"
        assert node.graph is not None
        graph = node.graph
    return loops


def _never(value: Value) -> Rewrite:
    raise AssertionError(f"{value} stands in a branch")


def lift(value: Value, graph: Graph, nothing: Callable[[Value], Rewrite] = _never) -> Value:
    """A value of a region at the top of the program, stacked over the loops it stands in, outermost first.

    Args:
        nothing: what a branch that is not taken returns in place of a value; left out where there is none.
    """
    while graph.parents:
        (node,) = graph.parents
        value = add_stacked(node, value) if node.op == "scan" else _add_result(node, value, graph, nothing)
        assert node.graph is not None
        graph = node.graph
    return value


def _add_result(node: Node, value: Value, graph: Graph, nothing: Callable[[Value], Rewrite]) -> Value:
    for region in node.regions:
        found = [value] if region is graph else write_before(nothing(value), region.ret, _RULE)
        region.set_outputs([*region.outputs, *found])
    result = Value(value.aval, node, len(node.results))
    node.set_results([*node.results, result])
    node.raw = None
    return result


def lower(array: Any, path: str, graph: Graph, ctx: PassContext) -> Value:
    """An array as a value of a region; its leading axes run over the loops that the region stands in.

    Args:
        path: what the array is called among the program's inputs.
    """
    if not graph.parents:
        return ctx.add_input(graph, array, path)
    (node,) = graph.parents
    assert node.graph is not None
    outer = lower(array, path, node.graph, ctx)
    if node.op != "scan":
        return add_constant(node, node.regions.index(graph), outer)
    inner = jax.typeof(jax.ShapeDtypeStruct(outer.shape[1:], outer.dtype))
    return add_scanned(node, outer, Value(inner))


def found_by_calibration(name: str, kind: str, graph: Graph, ctx: PassContext) -> list[Value]:
    """What calibration found or training learned at a site, as values of a region, if anything.

    Args:
        name: of the site.
        kind: of what was found.
    """
    arrays = ctx.calibration.get((name, kind), ())
    return [lower(array, f"calibration/{name}/{kind}/{i}", graph, ctx) for i, array in enumerate(arrays)]
