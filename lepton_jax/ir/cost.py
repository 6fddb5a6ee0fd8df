"""What nodes cost: floating-point operations and bytes, and seconds on a machine.

The numbers are for choosing between two forms of the same computation, not for telling
the time. Loops count as body times trip count; a dimension that is not known counts as 1.

There are two estimates. `seconds` of a `Cost` adds up operations as if each ran by itself: rules ask for
it, of a few operations whose neighbours may yet change. `program_seconds` is that of a whole program, and
knows what XLA computes together.
"""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jax.ir._cost.kernels import Program
from lepton_jax.ir._cost.leaves import leaf_cost
from lepton_jax.ir._cost.model import NOTHING
from lepton_jax.ir._cost.model import Cost as Cost
from lepton_jax.ir._cost.model import Rates as Rates
from lepton_jax.ir._cost.sizes import aval_bytes as aval_bytes
from lepton_jax.ir._cost.sizes import bytes_of as bytes_of
from lepton_jax.ir._cost.sizes import dtype_name as dtype_name
from lepton_jax.ir._cost.sizes import size_of as size_of
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.regions import LOOPS


def seconds(cost: Cost, rates: Rates) -> float:
    """The estimated time: the slower of arithmetic and memory, and what starting takes."""
    default = rates.flops["float32"]
    products = sum(flops / rates.flops.get(dtype, default) for dtype, flops in cost.dot_flops)
    others = cost.flops - sum(flops for _, flops in cost.dot_flops)
    busy = max(products + max(others, 0.0) / rates.vector_flops, cost.bytes / rates.bytes_per_second)
    return busy + cost.nodes * rates.seconds_per_node + cost.iterations * rates.seconds_per_iteration


def program_seconds(graph: Graph, rates: Rates) -> float:
    """The estimated time of running a program once, as the kernels that XLA makes of it.

    Example:
        >>> import jax.numpy as jnp
        >>> from lepton_jax.ir import trace
        >>> from lepton_jax.targets import CPU
        >>> x = jnp.ones((1024, 1024))
        >>> one, two = (program_seconds(trace(f, x), CPU) for f in (lambda x: x + 1, lambda x: (x + 1) * 2))
        >>> one == two  # the product is computed where the sum is
        True
    """
    return Program(rates).graph(graph).alone


def graph_cost(graph: Graph) -> Cost:
    """The cost of all nodes of a graph; each region is looked at once."""
    return _Estimate().graph(graph)


def node_cost(node: Node) -> Cost:
    """The cost of running one node, its regions included as often as they run."""
    return _Estimate().node(node)


class _Estimate:
    """Adds up costs; a region that several nodes share is added up once."""

    def __init__(self) -> None:
        self._known: dict[Graph, Cost] = {}

    def graph(self, graph: Graph) -> Cost:
        known = self._known.get(graph)
        if known is not None:
            return known
        flops = moved = nodes = iterations = 0.0
        dots: dict[str, float] = {}
        unknown = False
        for node in graph:
            cost = self.node(node)
            flops += cost.flops
            moved += cost.bytes
            nodes += cost.nodes
            iterations += cost.iterations
            unknown = unknown or cost.unknown_trip
            for dtype, amount in cost.dot_flops:
                dots[dtype] = dots.get(dtype, 0.0) + amount
        found = Cost(flops, moved, tuple(sorted(dots.items())), nodes, iterations, unknown)
        self._known[graph] = found
        return found

    def node(self, node: Node) -> Cost:
        if not node.regions:
            return leaf_cost(node)
        bodies = [self.graph(region) for region in node.regions]
        if node.op == "cond":
            return max(bodies, key=lambda cost: (cost.flops, cost.bytes))
        if node.op == "custom_linear_solve":
            return bodies[2] if len(bodies) > 2 else _total(bodies)
        if node.op not in LOOPS:
            return bodies[0]
        trips = 1 if node.op == "while" else size_of((node.params["length"],))
        body = _total(bodies).times(trips)
        return Cost(
            body.flops,
            body.bytes,
            body.dot_flops,
            body.nodes + 1,
            body.iterations + trips,
            body.unknown_trip or node.op == "while",
        )


def _total(costs: Sequence[Cost]) -> Cost:
    total = NOTHING
    for cost in costs:
        total += cost
    return total
