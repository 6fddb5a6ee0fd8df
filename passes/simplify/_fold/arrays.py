"""Data movement, reductions and products of whole arrays in numpy, as XLA defines them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._algebra.operands import kind_of
from lepton_jax.passes.simplify._fold.elementwise import Array, refuse_subnormal, require

Function = Callable[..., Any]


def _reshape(node: Node, x: Array) -> Array:
    require(node.params.get("dimensions") is None, "a reshape in another order")
    return x.reshape(node.result.shape)


def _squeeze(node: Node, x: Array) -> Array:
    return x.reshape(node.result.shape)


def _transpose(node: Node, x: Array) -> Array:
    return x.transpose(node.params["permutation"])


def _broadcast(node: Node, x: Array, *sizes: Array) -> Array:
    shape = node.result.shape
    unit = [1] * len(shape)
    for d, out in enumerate(node.params["broadcast_dimensions"]):
        unit[out] = x.shape[d]
    return np.broadcast_to(x.reshape(unit), shape)


def _reverse(node: Node, x: Array) -> Array:
    return np.flip(x, node.params["dimensions"])


def _slice(node: Node, x: Array) -> Array:
    p = node.params
    steps = p["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, p["start_indices"], p["limit_indices"], steps))]


def _dynamic_slice(node: Node, x: Array, *starts: Array) -> Array:
    sizes = node.params["slice_sizes"]
    firsts = [min(max(int(s), 0), d - n) for s, d, n in zip(starts, x.shape, sizes, strict=True)]
    return x[tuple(slice(first, first + n) for first, n in zip(firsts, sizes, strict=True))]


def _concatenate(node: Node, *arrays: Array) -> Array:
    return np.concatenate(arrays, node.params["dimension"])


def _pad(node: Node, x: Array, fill: Array) -> Array:
    config = node.params["padding_config"]
    require(all(low >= 0 and high >= 0 for low, high, _ in config), "negative padding")
    result = np.full(node.result.shape, fill)
    if x.size:
        ends = [low + (n - 1) * (gap + 1) + 1 for n, (low, _, gap) in zip(x.shape, config, strict=True)]
        result[tuple(slice(low, end, gap + 1) for end, (low, _, gap) in zip(ends, config, strict=True))] = x
    return result


def _iota(node: Node) -> Array:
    shape, dimension = node.result.shape, node.params["dimension"]
    line = np.arange(shape[dimension]).astype(node.result.dtype)
    return np.broadcast_to(line.reshape([-1 if d == dimension else 1 for d in range(len(shape))]), shape)


_MOVES: Final[dict[str, Function]] = {
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _squeeze,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "rev": _reverse,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "concatenate": _concatenate,
    "pad": _pad,
    "iota": _iota,
}


def _wide(x: Array) -> Array:
    """The same numbers in a dtype that adds up without rounding much."""
    return x.astype(np.float64) if kind_of(x.dtype) == "float" else x


def _sum(node: Node, x: Array) -> Any:
    return np.sum(_wide(x), axis=tuple(node.params["axes"]), dtype=_wide(x).dtype)


def _product(node: Node, x: Array) -> Any:
    return np.prod(_wide(x), axis=tuple(node.params["axes"]), dtype=_wide(x).dtype)


def _extreme(function: Function) -> Function:
    def apply(node: Node, x: Array) -> Any:
        require(x.size > 0, "nothing to choose from")
        zeros = np.signbit(x[x == 0]) if kind_of(x.dtype) == "float" else x[:0]
        require(zeros.size == 0 or bool(zeros.all() or not zeros.any()), "zeros of both signs")
        return function(_wide(x), axis=tuple(node.params["axes"]))

    return apply


def _place(function: Function) -> Function:
    def apply(node: Node, x: Array) -> Any:
        (axis,) = node.params["axes"]
        require(x.size > 0, "nothing to choose from")
        return function(_wide(x), axis=axis)

    return apply


def _bits(function: Function) -> Function:
    def apply(node: Node, x: Array) -> Any:
        return function.reduce(x, axis=tuple(node.params["axes"]))  # type: ignore[attr-defined]

    return apply


def _running_sum(node: Node, x: Array) -> Any:
    axis = node.params["axis"]
    x = np.flip(x, axis) if node.params["reverse"] else x
    total = np.cumsum(_wide(x), axis, dtype=_wide(x).dtype)
    return np.flip(total, axis) if node.params["reverse"] else total


def _dot(node: Node, x: Array, y: Array) -> Any:
    (left, right), (left_batch, right_batch) = node.params["dimension_numbers"]
    require(x.dtype == y.dtype == node.result.dtype, "a product of mixed dtypes")
    x = _as_matrices(_wide(x), left_batch, left, contracted_last=True)
    y = _as_matrices(_wide(y), right_batch, right, contracted_last=False)
    return np.matmul(x, y).reshape(node.result.shape)


def _as_matrices(x: Array, batch: Any, contracted: Any, contracted_last: bool) -> Array:
    free = [d for d in range(x.ndim) if d not in batch and d not in contracted]
    order = [*batch, *free, *contracted] if contracted_last else [*batch, *contracted, *free]
    size = [x.shape[d] for d in batch]
    many = int(np.prod([x.shape[d] for d in contracted], dtype=int))
    rest = int(np.prod([x.shape[d] for d in free], dtype=int))
    return x.transpose(order).reshape([*size, *([rest, many] if contracted_last else [many, rest])])


_TOTALS: Final[dict[str, Function]] = {
    "reduce_sum": _sum,
    "reduce_prod": _product,
    "cumsum": _running_sum,
    "dot_general": _dot,
}

_CHOICES: Final[dict[str, Function]] = {
    "reduce_max": _extreme(np.max),
    "reduce_min": _extreme(np.min),
    "argmax": _place(np.argmax),
    "argmin": _place(np.argmin),
    "reduce_and": _bits(np.bitwise_and),
    "reduce_or": _bits(np.bitwise_or),
    "reduce_xor": _bits(np.bitwise_xor),
}

OPS: Final = frozenset({*_MOVES, *_TOTALS, *_CHOICES})
"""What `compute` knows: operations on whole arrays."""


def rounds(op: str, result: Array) -> bool:
    """Whether the last bit of an operation's result depends on who computes it."""
    return op in _TOTALS and kind_of(result.dtype) not in ("int", "bool")


def compute(node: Node, arrays: list[Array]) -> Array:
    """The result of an operation on whole arrays.

    Raises:
        Unfoldable: it cannot be computed here, or not with the same bits.
    """
    if node.op in _MOVES:
        return np.asarray(_MOVES[node.op](node, *arrays))
    require(all(kind_of(a.dtype) in ("bool", "int", "float") for a in arrays), "complex arithmetic")
    with np.errstate(all="ignore"):
        refuse_subnormal(*arrays)
        function = _TOTALS.get(node.op) or _CHOICES[node.op]
        result = np.asarray(function(node, *arrays)).astype(node.result.dtype)
        refuse_subnormal(result)
    return result


def work(node: Node, arrays: list[Array]) -> int:
    """How many steps an operation takes, roughly."""
    size = max([int(jnp.size(a)) for a in arrays], default=0)
    if node.op != "dot_general":
        return size + 1
    (_, right), _ = node.params["dimension_numbers"]
    free = [n for d, n in enumerate(arrays[1].shape) if d not in right]
    return size * int(np.prod(free, dtype=int)) + 1
