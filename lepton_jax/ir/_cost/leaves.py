"""What single operations cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from lepton_jax.ir._cost.model import NOTHING, Cost
from lepton_jax.ir._cost.sizes import bytes_of, dtype_name, size_of
from lepton_jax.ir.graph import Node

# Operations that cost more than one addition, in additions.
_WEIGHTS: Final[Mapping[str, float]] = {
    **dict.fromkeys(("div", "rem", "sqrt", "rsqrt", "cbrt"), 4.0),
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "erf", "erfc"), 12.0),
    **dict.fromkeys(("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh"), 16.0),
    **dict.fromkeys(("asinh", "acosh", "atanh", "erf_inv", "pow", "lgamma", "digamma"), 24.0),
    **dict.fromkeys(("random_bits", "threefry2x32", "rng_bit_generator"), 20.0),
}

# Operations that only rename: they neither compute nor move anything.
FREE: Final = frozenset(
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


def leaf_cost(node: Node) -> Cost:
    """The cost of a node without regions."""
    known = _FORMULAS.get(node.op)
    if known is not None:
        return known(node)
    if node.op in FREE:
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
    return Cost(flops, float(_traffic(node)), ((dtype_name(node.operands[0].dtype), flops),), 1.0)


def _complex_factor(node: Node) -> int:
    return 4 if np.issubdtype(node.operands[0].dtype, np.complexfloating) else 1


def _dot(node: Node) -> Cost:
    (contracting, _), _ = node.params["dimension_numbers"]
    length = size_of([node.operands[0].shape[d] for d in contracting])
    return _product(node, 2.0 * size_of(node.result.shape) * length * _complex_factor(node))


def _ragged_dot(node: Node) -> Cost:
    numbers = node.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    length = float(size_of([node.operands[0].shape[d] for d in contracted]))
    if set(contracted) & {*numbers.lhs_ragged_dimensions}:  # each of these belongs to one result
        length /= max(size_of(node.operands[2].shape[-1:]), 1)
    return _product(node, 2.0 * size_of(node.result.shape) * length)


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


_STEPS: Final[Mapping[str, float]] = {"sort": 300.0, "top_k": 10.0, "approx_top_k": 10.0}
"""What one step takes, in additions: on two cores 64 × 4096 float32 take 30 ms to sort, 1 for the best 8."""


def _sort(node: Node) -> Cost:
    axis = node.params.get("dimension", -1)
    shape = node.operands[0].shape
    length = size_of([shape[axis]]) if shape else 1
    steps = size_of(shape) * math.log2(max(length, 2))
    return Cost(_STEPS[node.op] * steps, float(_traffic(node)), (), 1.0)


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
    **dict.fromkeys(("dot_general", "unsigned_product"), _dot),
    **dict.fromkeys(("ragged_dot_general", "ragged_product"), _ragged_dot),
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
