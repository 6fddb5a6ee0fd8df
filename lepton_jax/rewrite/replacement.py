"""Replacements: traced JAX functions written into a graph in place of a node."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import jax

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Node, RuleChain, Value
from lepton_jax.ir.importer import copy_equations
from lepton_jax.ir.shards import context_of, shard_maps_around, traced_on_shards
from lepton_jax.rewrite.errors import RuleError


@dataclass(frozen=True)
class Rewrite:
    """A traced function to put in place of a node.

    Attributes:
        fun: a JAX function of the values and the static arguments.
        values: the values it reads.
        static: its keyword arguments, hashable, so that its trace can be reused.
    """

    fun: Callable[..., Any]
    values: tuple[Value, ...]
    static: tuple[tuple[str, Any], ...] = ()


def rewrite(fun: Callable[..., Any], *values: Value, **static: Any) -> Rewrite:
    """Put `fun(*values, **static)` in place of a node; `fun` is an ordinary JAX function.

    Pass a function that lives as long as the program (not a lambda made on the spot):
    its trace is kept and reused for the same shapes, dtypes and static arguments.
    """
    return Rewrite(fun, values, tuple(sorted(static.items())))


_TRACES: OrderedDict[Any, Any] = OrderedDict()
_MOST_TRACES: Final = 4096


def traced(made: Rewrite, node: Node) -> Any:
    """The jaxpr of a rewrite at its values' abstract values, in the context of a node."""
    avals = tuple(value.aval for value in made.values)
    around = shard_maps_around(node.graph)
    key = (
        made.fun,
        made.static,
        avals,
        node.context,
        tuple(map(context_of, around)),
        _jax.x64_enabled(),
        _jax.matmul_precision(),
    )
    try:
        known = _TRACES.get(key)
    except TypeError:  # a static argument that cannot be hashed: trace anew
        return traced_on_shards(lambda: _trace(made, avals, node), around)
    if known is None:
        known = _TRACES[key] = traced_on_shards(lambda: _trace(made, avals, node), around)
        if len(_TRACES) > _MOST_TRACES:
            _TRACES.popitem(last=False)
    return known


def _trace(made: Rewrite, avals: tuple[Any, ...], node: Node) -> Any:
    def flat(*args: Any) -> list[Any]:
        return jax.tree.leaves(made.fun(*args, **dict(made.static)))

    with _jax.Placement() as placement, placement.at(None, node.context):
        return _jax.trace_flat(flat, avals)


def write(made: Rewrite, node: Node, rule: str) -> list[Node]:
    """Write a rewrite before a node and let all readers of the node read it instead.

    Returns:
        The new nodes.

    Raises:
        RuleError: the number of results, a shape or a dtype differs from the node's.
    """
    closed = traced(made, node)
    _check(closed.out_avals, node, rule)
    before = node.prev
    outputs = _write_before(closed, made.values, node, rule)
    for old, value in zip(node.results, outputs, strict=True):
        old.replace_uses(value)
    return between(before, node)


def write_before(made: Rewrite, node: Node, rule: str) -> list[Value]:
    """Write a traced function before a node; returns its results. The node stays as it is."""
    return _write_before(traced(made, node), made.values, node, rule)


def _write_before(closed: Any, values: tuple[Value, ...], node: Node, rule: str) -> list[Value]:
    graph = node.graph
    assert graph is not None
    before = node.prev
    outputs = copy_equations(closed, values, graph, node, {})
    for fresh in between(before, node):
        fresh.source = node.source
        fresh.rule = RuleChain(rule, node.rule)
    return outputs


def between(before: Node | None, after: Node) -> list[Node]:
    """The nodes after `before` and before `after`."""
    found: list[Node] = []
    node = after.prev
    while node is not before and node is not None:
        found.append(node)
        node = node.prev
    return found[::-1]


def _check(avals: list[Any], node: Node, rule: str) -> None:
    got = [(a.shape, a.dtype) for a in avals]
    want = [(v.shape, v.dtype) for v in node.results]
    if got != want:
        raise RuleError(f"rule {rule} replaces {node.op} giving {want} by something giving {got}")
