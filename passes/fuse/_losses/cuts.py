"""How an operation is run on a part of the rows: which dimensions of its operands are cut with its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import is_free

Cuts = list[int | None]
"""For each operand, the dimension that is cut, or None where all of it is read."""

ELEMENTWISE: Final = frozenset(
    {
        *("neg", "sign", "floor", "ceil", "round", "abs", "exp", "exp2", "expm1", "log", "log1p", "logistic"),
        *(
            "tanh",
            "sin",
            "cos",
            "tan",
            "sqrt",
            "rsqrt",
            "cbrt",
            "square",
            "erf",
            "erfc",
            "integer_pow",
            "one_minus_square",
        ),
        *("is_finite", "not", "convert_element_type", "stop_gradient", "copy", "reduce_precision"),
        *("add", "add_any", "sub", "mul", "div", "rem", "max", "min", "pow", "and", "or", "xor"),
        *("eq", "ne", "lt", "le", "gt", "ge", "select_n", "clamp"),
    }
)


def cuts_of(node: Node, d: int) -> Cuts | None:
    """What to cut of the operands so that a node makes a part of its result along dimension `d`.

    None where the operation is unknown, or where a row of the result needs more than its own rows.
    """
    if node.regions or node.effects or len(node.results) != 1:
        return None
    if node.op in ELEMENTWISE:
        length = node.result.shape[d]
        return [d if v.ndim and v.shape[d] == length else None for v in node.operands]
    planner = _CUTS.get(node.op)
    return None if planner is None or not is_free(node) else planner(node, d)


def params_at(node: Node, d: int, length: int) -> Mapping[str, Any]:
    """The parameters of a node whose result has `length` elements along dimension `d`."""
    key = _SHAPES.get(node.op)
    if key is None:
        return node.params
    shape = list(node.params[key])
    shape[d] = length
    return {**node.params, key: tuple(shape)}


def split_of(wide: tuple[int, ...], shape: tuple[int, ...], d: int, parts: int) -> int | None:
    """The dimension of `wide` whose outermost `parts` parts are those of dimension `d` after a reshape."""
    before = math.prod(shape[:d])
    for i, length in enumerate(wide):
        if math.prod(wide[:i]) == before and length > 1:
            return i if length % parts == 0 and 0 not in wide else None
    return None


def _broadcast(node: Node, d: int) -> Cuts | None:
    x, *rest = node.operands
    own = [i for i, at in enumerate(node.params["broadcast_dimensions"]) if int(at) == d]
    return None if rest else [own[0] if own and x.shape[own[0]] == node.result.shape[d] else None]


def _iota(node: Node, d: int) -> Cuts | None:
    return None if node.operands or node.params["dimension"] == d else []


def _transpose(node: Node, d: int) -> Cuts:
    return [int(node.params["permutation"][d])]


def _squeeze(node: Node, d: int) -> Cuts:
    x = node.operands[0]
    gone = {int(i) % x.ndim for i in node.params["dimensions"]}
    return [[i for i in range(x.ndim) if i not in gone][d]]


def _reduction(node: Node, d: int) -> Cuts | None:
    if len(node.operands) != 1:
        return None
    return [[i for i in range(node.operands[0].ndim) if i not in node.params["axes"]][d]]


def _cumulative(node: Node, d: int) -> Cuts | None:
    return None if node.params["axis"] == d else [d]


def _concatenate(node: Node, d: int) -> Cuts | None:
    return None if node.params["dimension"] == d else [d for _ in node.operands]


def _pad(node: Node, d: int) -> Cuts | None:
    return None if any(node.params["padding_config"][d]) else [d, None]


def _dot(node: Node, d: int) -> Cuts:
    contract, batch = node.params["dimension_numbers"]
    if d < len(batch[0]):
        return [int(batch[0][d]), int(batch[1][d])]
    free = [
        (side, i)
        for side, x in enumerate(node.operands)
        for i in range(x.ndim)
        if i not in contract[side] and i not in batch[side]
    ]
    found: Cuts = [None, None]
    side, own = free[d - len(batch[0])]
    found[side] = own
    return found


def _gather(node: Node, d: int) -> Cuts | None:
    """Along the dimensions that the indices bring in."""
    numbers = node.params["dimension_numbers"]
    brought = [i for i in range(node.result.ndim) if i not in numbers.offset_dims]
    if d not in brought:
        return None
    own = brought.index(d)
    batching = tuple(numbers.start_indices_batching_dims)
    at = numbers.operand_batching_dims[batching.index(own)] if own in batching else None
    return [at, own]


def _scatter(node: Node, d: int) -> Cuts | None:
    """Along batching dimensions."""
    numbers = node.params["dimension_numbers"]
    if d not in numbers.operand_batching_dims:
        return None
    own = numbers.scatter_indices_batching_dims[tuple(numbers.operand_batching_dims).index(d)]
    brought = [i for i in range(node.operands[2].ndim) if i not in numbers.update_window_dims]
    return [d, int(own), brought[own]]


_CUTS: Final[Mapping[str, Callable[[Node, int], Cuts | None]]] = {
    "broadcast_in_dim": _broadcast,
    "iota": _iota,
    "transpose": _transpose,
    "squeeze": _squeeze,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin"), _reduction),
    **dict.fromkeys(("cumsum", "cummax", "cummin", "cumlogsumexp"), _cumulative),
    "concatenate": _concatenate,
    "pad": _pad,
    "dot_general": _dot,
    "gather": _gather,
    "scatter-add": _scatter,
}

_SHAPES: Final[Mapping[str, str]] = {"broadcast_in_dim": "shape", "iota": "shape", "reshape": "new_sizes"}
