"""Which operations between products run in low precision too, so that what they read and write stays low."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from lepton_jax.ir.binding import is_stored
from lepton_jax.ir.graph import RETURN, Graph, Node, Value
from lepton_jax.passes.quantize._precision.lists import READERS, SUMS, VIEWS, follows
from lepton_jax.passes.simplify._demand.makers import is_relu


@dataclass(frozen=True)
class Paint:
    """What runs in low precision in one graph.

    Attributes:
        products: the products that take low operands.
        narrow: those of them whose result is read in low precision alone.
        chain: other operations, between products or in front of them, that take and give low numbers.
    """

    products: frozenset[Node]
    narrow: frozenset[Node]
    chain: frozenset[Node]

    @property
    def low(self) -> frozenset[Node]:
        """The nodes whose results are low."""
        return self.narrow | self.chain

    def components(self) -> Iterator[tuple[Node, frozenset[Node]]]:
        """The parts of `low` that read one another, each with its first node in program order."""
        left = set(self.low)
        graphs = {node.graph for node in left if node.graph is not None}
        for node in [node for graph in graphs for node in graph]:
            if node not in left:
                continue
            found = {node}
            stack = [node]
            while stack:
                current = stack.pop()
                near = {v.node for v in current.operands if v.node is not None and current in self.chain}
                near |= {user for v in current.results for user in v.users() if user in self.chain}
                fresh = (near & left) - found
                found |= fresh
                stack += fresh
            left -= found
            yield node, frozenset(found)

    def without(self, nodes: Collection[Node]) -> Paint:
        """The same with whole components left in float32."""
        return Paint(self.products, self.narrow - set(nodes), self.chain - set(nodes))


def paint(graph: Graph, products: Collection[Node], low: str, arithmetic: bool) -> Paint:
    """Find what may run in low precision in one graph: the most that the conditions allow.

    A product's result is low, and an operation of the lists follows, where all readers are low or may be
    given rounded numbers, and where some reader leads to a product. What follows must come from a product as
    well, or be a view (a transposed weight is converted before it is transposed). What adds must read nothing
    else, but for what is smaller than its result.

    Args:
        products: those that take low operands.
        low: the low dtype.
        arithmetic: whether arithmetic may follow, or only what is exact.
    """
    wide_range = jnp.finfo(low).maxexp >= jnp.finfo(jnp.float32).maxexp
    here = frozenset(node for node in graph if node in products)
    narrow = set(here)
    chain = {node for node in graph if node not in here and _may_follow(node, arithmetic, wide_range)}
    if is_manual(graph):
        chain = {node for node in chain if not node.regions}
    size = -1
    while size != len(narrow) + len(chain):
        size = len(narrow) + len(chain)
        _drop_misread(here, narrow, chain, low)
        led = _leading_to_products(graph, here, narrow | chain)
        fed = _fed_by_products(graph, narrow, chain)
        narrow &= led
        chain = {node for node in chain if node in led and (node in fed or node.op in VIEWS)}
    return Paint(here, frozenset(narrow), frozenset(chain))


def is_manual(graph: Graph) -> bool:
    """Whether a graph runs on shards inside `shard_map`, where a traced function may not bring in numbers.

    JAX wants to know of each number over which axes it varies, which a function traced outside cannot say.
    """
    return any(
        node.op == "shard_map" or (node.graph is not None and is_manual(node.graph)) for node in graph.parents
    )


def _may_follow(node: Node, arithmetic: bool, wide_range: bool) -> bool:
    if node.effects or not (is_relu(node) or _is_listed(node, arithmetic, wide_range)):
        return False
    floats = [v for v in (*node.operands, *node.results) if _is_float(v)]
    return all(v.dtype == jnp.float32 for v in floats) and all(_is_float(v) for v in node.results)


def _is_listed(node: Node, arithmetic: bool, wide_range: bool) -> bool:
    return not node.regions and not is_stored(node) and follows(node.op, node.params, arithmetic, wide_range)


def _is_float(value: Value) -> bool:
    dtype: Any = value.dtype
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.floating))


def _drop_misread(products: Collection[Node], narrow: set[Node], chain: set[Node], low: str) -> None:
    """Take out what somebody reads who wants float32, then what that reads, and so on."""
    work = [*narrow, *chain]
    while work:
        node = work.pop()
        if node not in narrow and node not in chain:
            continue
        users = {user for value in node.results for user, _ in value.uses}
        if all(user in products or user in chain or _reads_low(user, low) for user in users):
            continue
        narrow.discard(node)
        if node in chain:
            chain.discard(node)
            work += [v.node for v in node.operands if v.node is not None]


def _reads_low(node: Node, low: str) -> bool:
    """Whether a node that computes as before may be given rounded numbers."""
    if node.op == "convert_element_type":
        return bool(node.result.dtype == low)
    return node.op != RETURN and node.op in READERS


def _leading_to_products(graph: Graph, products: Collection[Node], low: Collection[Node]) -> set[Node]:
    """The low nodes with a product that reads what they lead to."""
    found: set[Node] = set()
    for node in reversed(graph):
        users = [user for value in node.results for user in value.users()]
        if node in low and any(user in products or user in found for user in users):
            found.add(node)
    return found


def _fed_by_products(graph: Graph, narrow: Collection[Node], chain: Collection[Node]) -> set[Node]:
    """The nodes of the chain that read a low product, or what comes from one."""
    found: set[Node] = set()
    for node in graph:
        if node not in chain:
            continue
        fed = [v.node is not None and (v.node in narrow or v.node in found) for v in node.operands]
        if node.op in SUMS and not all(
            f or _is_small(v, node) for f, v in zip(fed, node.operands, strict=True)
        ):
            continue
        if any(fed):
            found.add(node)
    return found


def _is_small(value: Value, node: Node) -> bool:
    """Whether an operand has fewer elements than the result, or repeats what has."""
    maker = value.node
    source = maker.operands[0] if maker is not None and maker.op == "broadcast_in_dim" else value
    return value.ndim == 0 or _elements(source) < _elements(node.result)


def _elements(value: Value) -> int:
    """How many elements an array has; a symbolic dimension counts as 1."""
    return math.prod(d for d in value.shape if type(d) is int)
