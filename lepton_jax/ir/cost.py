"""What nodes cost: floating-point operations and bytes, and seconds on a machine.

The numbers are for choosing between two forms of the same computation, not for telling
the time. Loops count as body times trip count; a dimension that is not known counts as 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import LOOPS


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does in a second.

    Attributes:
        name: the target's name.
        platform: JAX's name of the platform: cpu, gpu or tpu.
        flops: operations a second of products of matrices, by the operands' dtype; other
            dtypes go at the rate of float32.
        vector_flops: operations a second of elementwise arithmetic.
        bytes_per_second: of main memory.
        seconds_per_node: what starting an operation takes, whatever its size.
        seconds_per_iteration: what going once round a loop takes, besides the body.
    """

    name: str
    platform: str
    flops: Mapping[str, float] = field(hash=False)
    vector_flops: float
    bytes_per_second: float
    seconds_per_node: float
    seconds_per_iteration: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What computing something takes.

    Attributes:
        flops: all operations.
        bytes: read and written, as if no two operations were fused.
        dot_flops: those of `flops` that products of matrices do, by dtype.
        nodes: how often an operation is started.
        iterations: how often a loop goes round.
        unknown_trip: whether a while loop is in it, counted as if it went round once.
    """

    flops: float = 0.0
    bytes: float = 0.0
    dot_flops: tuple[tuple[str, float], ...] = ()
    nodes: float = 0.0
    iterations: float = 0.0
    unknown_trip: bool = False

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            _joined(self.dot_flops, other.dot_flops),
            self.nodes + other.nodes,
            self.iterations + other.iterations,
            self.unknown_trip or other.unknown_trip,
        )

    def times(self, count: float) -> Cost:
        """The cost of doing it `count` times."""
        return Cost(
            self.flops * count,
            self.bytes * count,
            tuple((dtype, flops * count) for dtype, flops in self.dot_flops),
            self.nodes * count,
            self.iterations * count,
            self.unknown_trip,
        )


def _joined(
    a: tuple[tuple[str, float], ...], b: tuple[tuple[str, float], ...]
) -> tuple[tuple[str, float], ...]:
    if not a or not b:
        return a or b
    found = dict(a)
    for dtype, flops in b:
        found[dtype] = found.get(dtype, 0.0) + flops
    return tuple(sorted(found.items()))


NOTHING: Final = Cost()


def seconds(cost: Cost, rates: Rates) -> float:
    """The estimated time: the slower of arithmetic and memory, and what starting takes."""
    default = rates.flops["float32"]
    products = sum(flops / rates.flops.get(dtype, default) for dtype, flops in cost.dot_flops)
    others = cost.flops - sum(flops for _, flops in cost.dot_flops)
    busy = max(products + max(others, 0.0) / rates.vector_flops, cost.bytes / rates.bytes_per_second)
    return busy + cost.nodes * rates.seconds_per_node + cost.iterations * rates.seconds_per_iteration


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
            return _leaf(node)
        bodies = [self.graph(region) for region in node.regions]
        if node.op == "cond":
            return max(bodies, key=lambda cost: (cost.flops, cost.bytes))
        if node.op == "custom_linear_solve":
            return bodies[2] if len(bodies) > 2 else _total(bodies)
        if node.op == "custom_vjp_call" or node.op not in LOOPS:
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


# Sizes


def size_of(shape: Sequence[Any]) -> int:
    """The number of elements; a symbolic dimension counts as 1."""
    size = 1
    for d in shape:
        if type(d) is int:
            size *= d
    return size


def bytes_of(value: Value) -> int:
    """The bytes of an array; 0 for tokens and the like, 4-bit numbers take half a byte."""
    return aval_bytes(value.aval)


def aval_bytes(aval: Any) -> int:
    """The bytes of an array with this abstract value."""
    dtype = getattr(aval, "dtype", None)
    return 0 if dtype is None else -(-size_of(aval.shape) * _bits(dtype) // 8)


@cache
def _bits(dtype: Any) -> int:
    """How many bits one element takes."""
    if _jax.is_extended(dtype):
        return int(getattr(dtype, "itemsize", 8)) * 8
    narrow = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4_e2m1fn": 4}
    return int(narrow.get(np.dtype(dtype).name, np.dtype(dtype).itemsize * 8))


@cache
def _name(dtype: Any) -> str:
    return str(np.dtype(dtype).name)


# Single operations

# Operations that cost more than one addition, in additions.
_WEIGHTS: Final[Mapping[str, float]] = {
    **dict.fromkeys(("div", "rem", "sqrt", "rsqrt", "cbrt"), 4.0),
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "erf", "erfc"), 12.0),
    **dict.fromkeys(("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh"), 16.0),
    **dict.fromkeys(("asinh", "acosh", "atanh", "erf_inv", "pow", "lgamma", "digamma"), 24.0),
    **dict.fromkeys(("random_bits", "threefry2x32", "rng_bit_generator"), 20.0),
}

# Operations that only rename: they neither compute nor move anything.
_FREE: Final = frozenset(
    {
        "reshape",
        "squeeze",
        "expand_dims",
        "stop_gradient",
        "name",
        "sharding_constraint",
        "optimization_barrier",
        "pvary",
        "pcast",
        "random_wrap",
        "random_unwrap",
        "create_token",
        "debug_print",
    }
)

# Operations that move elements and do not compute.
_MOVES: Final = frozenset(
    {
        "broadcast_in_dim",
        "transpose",
        "rev",
        "concatenate",
        "pad",
        "copy",
        "copy_p",
        "iota",
        "bitcast_convert_type",
        "split",
        "device_put",
        "real",
        "imag",
        "complex",
    }
)


def _leaf(node: Node) -> Cost:
    known = _FORMULAS.get(node.op)
    if known is not None:
        return known(node)
    if node.op in _FREE:
        return NOTHING
    written = sum(size_of(value.shape) for value in node.results)
    flops = 0.0 if node.op in _MOVES else written * _WEIGHTS.get(node.op, 1.0)
    return Cost(flops, float(_traffic(node)), (), 1.0)


def _traffic(node: Node) -> int:
    """Bytes read and written when every operand is read once."""
    return sum(map(bytes_of, node.operands)) + sum(map(bytes_of, node.results))


def _written(node: Node) -> int:
    return sum(map(bytes_of, node.results))


def _product(node: Node, flops: float) -> Cost:
    return Cost(flops, float(_traffic(node)), ((_name(node.operands[0].dtype), flops),), 1.0)


def _complex_factor(node: Node) -> int:
    return 4 if np.issubdtype(node.operands[0].dtype, np.complexfloating) else 1


def _dot(node: Node) -> Cost:
    (contracting, _), _ = node.params["dimension_numbers"]
    length = size_of([node.operands[0].shape[d] for d in contracting])
    return _product(node, 2.0 * size_of(node.result.shape) * length * _complex_factor(node))


def _ragged_dot(node: Node) -> Cost:
    return _product(node, 2.0 * size_of(node.result.shape) * size_of(node.operands[0].shape[-1:]))


def _conv(node: Node) -> Cost:
    kernel = node.operands[1].shape
    out_channels = node.params["dimension_numbers"].rhs_spec[0]
    per_output = size_of(kernel) / max(size_of([kernel[out_channels]]), 1)
    return _product(node, 2.0 * size_of(node.result.shape) * per_output * _complex_factor(node))


def _reduction(node: Node) -> Cost:
    return Cost(float(sum(size_of(v.shape) for v in node.operands)), float(_traffic(node)), (), 1.0)


def _window(node: Node) -> Cost:
    window = size_of(node.params.get("window_dimensions", ()))
    return Cost(float(size_of(node.results[0].shape) * window), float(_traffic(node)), (), 1.0)


def _partial_read(node: Node) -> Cost:
    """Gather, slices: only what is written is read."""
    indices = sum(map(bytes_of, node.operands[1:]))
    return Cost(0.0, 2.0 * _written(node) + indices, (), 1.0)


def _scatter(node: Node) -> Cost:
    updates = node.operands[-1]
    flops = 0.0 if node.op == "scatter" else float(size_of(updates.shape))
    return Cost(flops, float(_traffic(node)), (), 1.0)


def _update(node: Node) -> Cost:
    """Updating a slice: in place as a rule, so only the slice moves."""
    return Cost(0.0, 2.0 * bytes_of(node.operands[1]), (), 1.0)


def _sort(node: Node) -> Cost:
    axis = node.params.get("dimension", -1)
    shape = node.operands[0].shape
    length = size_of([shape[axis]]) if shape else 1
    steps = size_of(shape) * math.log2(max(length, 2))
    return Cost(2.0 * steps, float(_traffic(node)), (), 1.0)


def _fft(node: Node) -> Cost:
    lengths = node.params["fft_lengths"]
    points = max(size_of(node.operands[0].shape), size_of(node.result.shape))
    return Cost(5.0 * points * math.log2(max(size_of(lengths), 2)), float(_traffic(node)), (), 1.0)


# Factorisations of n by n matrices take this many times n³ operations.
_CUBES: Final[Mapping[str, float]] = {
    "cholesky": 1 / 3,
    "lu": 2 / 3,
    "qr": 4 / 3,
    "geqrf": 4 / 3,
    "householder_product": 4 / 3,
    "svd": 20.0,
    "eigh": 9.0,
    "eig": 25.0,
    "schur": 25.0,
    "hessenberg": 10 / 3,
    "tridiagonal": 4 / 3,
}


def _factorisation(node: Node) -> Cost:
    shape = node.operands[0].shape
    rows, columns = (size_of([d]) for d in shape[-2:])
    cube = max(rows, columns) * min(rows, columns) ** 2
    flops = _CUBES[node.op] * size_of(shape[:-2]) * cube * _complex_factor(node)
    return Cost(flops, float(_traffic(node)), (), 1.0)


def _triangular_solve(node: Node) -> Cost:
    side = size_of(node.operands[0].shape[-1:])
    flops = float(size_of(node.operands[1].shape) * side * _complex_factor(node))
    return Cost(flops, float(_traffic(node)), (), 1.0)


_FORMULAS: Final[Mapping[str, Callable[[Node], Cost]]] = {
    "dot_general": _dot,
    "ragged_dot": _ragged_dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _conv,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce"), _reduction),
    **dict.fromkeys(("reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin"), _reduction),
    **dict.fromkeys(("cumsum", "cummax", "cummin", "cumprod", "cumlogsumexp"), _reduction),
    **dict.fromkeys(("reduce_window", "reduce_window_sum", "reduce_window_max"), _window),
    **dict.fromkeys(("reduce_window_min", "select_and_gather_add"), _window),
    **dict.fromkeys(("slice", "dynamic_slice", "gather"), _partial_read),
    **dict.fromkeys(("scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max"), _scatter),
    "dynamic_update_slice": _update,
    **dict.fromkeys(("sort", "top_k", "approx_top_k"), _sort),
    "fft": _fft,
    "triangular_solve": _triangular_solve,
    **dict.fromkeys(_CUBES, _factorisation),
}
