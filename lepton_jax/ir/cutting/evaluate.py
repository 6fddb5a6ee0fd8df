"""Evaluating a graph of which only a part is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lepton_jax.ir import _jax, export
from lepton_jax.ir.cutting.custom import bind_custom
from lepton_jax.ir.cutting.cut import Cut, CutError, where
from lepton_jax.ir.cutting.rules import bind_leaf, scan_length
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.importer import from_jaxpr


def evaluate_cut(graph: Graph, args: Sequence[Any], cut: Cut) -> list[Any]:
    """The outputs of a graph of which only a part is kept, on smaller arrays or tracers.

    Args:
        graph: with the shapes it was traced at, its calls inlined (`inline_calls`).
        args: what stays of its inputs.
        cut: what stays of every value, regions included.

    Returns:
        What stays of its outputs.

    Raises:
        CutError: an operation cannot be made smaller so, or an argument is not as small as it should be.
    """
    if len(args) != len(graph.inputs):
        raise TypeError(f"{graph.name} takes {len(graph.inputs)} arrays, got {len(args)}")
    env: dict[Value, Any] = dict(zip(graph.inputs, args, strict=True))

    def read(node: Node) -> list[Any]:
        each = enumerate(node.operands)
        return [cut.constant(node, place) if value.is_const else env[value] for place, value in each]

    with _jax.Placement() as placement:
        for node in graph:
            operands = read(node)
            with placement.at(node.source, node.context):
                results = _bind(node, operands, cut)
            env.update(zip(node.results, results, strict=True))
    return read(graph.ret)


def cut_graph(graph: Graph, cut: Cut) -> Graph:
    """The smaller graph, as JAX traces it.

    Raises:
        CutError: an operation cannot be made smaller so.
    """
    closed = _jax.trace_flat(_flat(graph, cut), [cut.aval(value) for value in graph.inputs])
    return from_jaxpr(closed, graph.name)


def _flat(graph: Graph, cut: Cut) -> Callable[..., list[Any]]:
    return lambda *args: evaluate_cut(graph, args, cut)


def _bind(node: Node, operands: Sequence[Any], cut: Cut) -> Sequence[Any]:
    if not cut.concerns(node):
        return export.bind(node, operands)
    try:
        if not node.regions:
            return bind_leaf(node, operands, cut)
        if node.op in ("custom_jvp_call", "custom_vjp_call"):
            return bind_custom(node, operands, cut, _flat(node.regions[0], cut), evaluate_cut)
        return _with_regions(node, operands, cut)
    except CutError:
        raise
    except (TypeError, ValueError) as error:
        raise CutError(f"{node.op} cannot be made smaller: {error} ({where(node)})") from error


def _with_regions(node: Node, operands: Sequence[Any], cut: Cut) -> Sequence[Any]:
    """Let `export` build the operation with smaller regions."""
    if node.op in ("custom_linear_solve", "shard_map"):
        raise CutError(f"{node.op} cannot be made smaller ({where(node)})")
    params = dict(node.params)
    if node.op == "scan":
        params["length"] = scan_length(node, cut)
    regions = [cut_graph(region, cut) for region in node.regions]
    smaller = Node(
        node.op, node.primitive, (), (), params, regions=regions, source=node.source, context=node.context
    )
    return export.bind(smaller, operands)
