"""Makers: operations of whose result a part can be made from parts of their operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import is_free, size

HEAVY: Final = frozenset(
    {
        "dot_general",
        "conv_general_dilated",
        *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
        *("argmax", "argmin", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort"),
    }
)
"""Operations that XLA computes whole even where only a part is read."""

_UNARY: Final = frozenset(
    {
        *("neg", "sign", "floor", "ceil", "round", "abs", "exp", "exp2", "expm1", "log", "log1p", "logistic"),
        *("tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
        *("sqrt", "rsqrt", "cbrt", "square", "erf", "erfc", "erf_inv", "lgamma", "digamma", "integer_pow"),
        *("one_minus_square", "log2", "reduce_precision", "clz", "population_count"),
        *("is_finite", "not", "real", "imag", "conj", "convert_element_type", "stop_gradient", "copy"),
    }
)

_SEVERAL: Final = frozenset(
    {
        *("add", "add_any", "sub", "mul", "div", "rem", "max", "min", "pow", "atan2", "and", "or", "xor"),
        *("eq", "ne", "lt", "le", "gt", "ge", "select_n", "clamp", "nextafter", "complex"),
        *("shift_left", "shift_right_logical", "shift_right_arithmetic"),
    }
)

ELEMENTWISE: Final = _UNARY | _SEVERAL

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """How to make a part of a node's result.

    Attributes:
        places: for each operand, the dimensions to cut, each with the result's dimension that it is.
        shape: the parameter that holds the result's shape, if there is one.
    """

    places: Sequence[dict[int, int]]
    shape: str | None = None
    params: dict[str, Any] = field(default_factory=dict)


def plan_of(node: Node, dims: Dims) -> Plan | None:
    """How to make a part of a node's result, cut along `dims`; None where it cannot be made of parts."""
    if node.op in ELEMENTWISE:
        return _elementwise(node, dims)
    planner = _PLANNERS.get(node.op)
    return None if planner is None or not is_free(node) else planner(node, dims)


def is_known(node: Node) -> bool:
    """Whether parts of a node's result may be made from parts of its operands."""
    return node.op in ELEMENTWISE or node.op in _PLANNERS


def _elementwise(node: Node, dims: Dims) -> Plan:
    shape = node.results[0].shape
    return Plan([{d: d for d in dims if v.ndim and v.shape[d] == shape[d]} for v in node.operands])


def _broadcast(node: Node, dims: Dims) -> Plan | None:
    if len(node.operands) != 1:
        return None
    x, shape = node.operands[0], node.result.shape
    own = enumerate(node.params["broadcast_dimensions"])
    return Plan([{i: int(d) for i, d in own if d in dims and x.shape[i] == shape[d]}], "shape")


def _transpose(node: Node, dims: Dims) -> Plan:
    return Plan([{int(p): d for d, p in enumerate(node.params["permutation"]) if d in dims}])


def _squeeze(node: Node, dims: Dims) -> Plan:
    gone = {int(d) % node.operands[0].ndim for d in node.params["dimensions"]}
    kept = [d for d in range(node.operands[0].ndim) if d not in gone]
    return Plan([{kept[d]: d for d in dims}])


def _reshape(node: Node, dims: Dims) -> Plan | None:
    """Where every dimension cut is a dimension of the operand too, with as many elements before and after."""
    if node.params["dimensions"] is not None or len(node.operands) != 1:
        return None
    wide, shape = node.operands[0].shape, node.result.shape
    known = {(size(wide[:i]), length): i for i, length in enumerate(wide) if length > 1}
    places = {known.get((size(shape[:d]), shape[d])): d for d in dims}
    if None in places or 0 in shape:
        return None
    return Plan([{i: d for i, d in places.items() if i is not None}], "new_sizes")


def _reduction(node: Node, dims: Dims) -> Plan | None:
    if len(node.operands) != 1:
        return None
    kept = [d for d in range(node.operands[0].ndim) if d not in node.params["axes"]]
    return Plan([{kept[d]: d for d in dims}])


def _along(key: str) -> Callable[[Node, Dims], Plan | None]:
    """For operations that work along one dimension: all others may be cut."""

    def planner(node: Node, dims: Dims) -> Plan | None:
        if node.params[key] in dims or len(node.results) != 1:
            return None
        return Plan([{d: d for d in dims} for _ in node.operands])

    return planner


def _reverse(node: Node, dims: Dims) -> Plan | None:
    return None if any(d in dims for d in node.params["dimensions"]) else Plan([{d: d for d in dims}])


def _pad(node: Node, dims: Dims) -> Plan | None:
    if any(any(node.params["padding_config"][d]) for d in dims):
        return None
    return Plan([{d: d for d in dims}, {}])


def _dot(node: Node, dims: Dims) -> Plan:
    contract, batch = node.params["dimension_numbers"]
    a, b = node.operands
    places: list[dict[int, int]] = [{}, {}]
    free = [
        (side, d)
        for side, x in enumerate((a, b))
        for d in range(x.ndim)
        if d not in contract[side] and d not in batch[side]
    ]
    for d in dims:
        if d < len(batch[0]):
            places[0][int(batch[0][d])] = places[1][int(batch[1][d])] = d
        else:
            side, own = free[d - len(batch[0])]
            places[side][own] = d
    return Plan(places)


def _conv(node: Node, dims: Dims) -> Plan | None:
    """Examples and output features."""
    p = node.params
    left, right, out = p["dimension_numbers"]
    if p["batch_group_count"] != 1:
        return None
    places: list[dict[int, int]] = [{}, {}]
    for d in dims:
        if d == out[0]:
            places[0][left[0]] = d
        elif d == out[1] and p["feature_group_count"] == 1:
            places[1][right[0]] = d
        else:
            return None
    return Plan(places)


def _gather(node: Node, dims: Dims) -> Plan | None:
    """Among the dimensions that the indices bring in: fewer indices."""
    numbers = node.params["dimension_numbers"]
    brought = [d for d in range(node.result.ndim) if d not in numbers.offset_dims]
    if numbers.operand_batching_dims or any(d not in brought for d in dims):
        return None
    return Plan([{}, {brought.index(d): d for d in dims}])


def is_relu(node: Node) -> bool:
    """Whether a node is `jax.nn.relu`: max(x, 0) with a derivative of its own."""
    if node.op != "custom_jvp_call" or len(node.operands) != 1:
        return False
    graph = node.regions[0]
    only = next(iter(graph))
    if only.op == "jit" and only.params.get("name") == "relu" and graph.outputs == only.results:
        graph = only.regions[0]
        only = next(iter(graph))
    if only.op != "max" or graph.outputs != only.results or only.operands[0] is not graph.inputs[0]:
        return False
    return "relu" in graph.name and _is_zero(only.operands[1])


def _is_zero(value: Value) -> bool:
    return value.is_const and value.ndim == 0 and bool(value.const == 0)


_PLANNERS: Final[dict[str, Callable[[Node, Dims], Plan | None]]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"), _reduction),
    **dict.fromkeys(("reduce_and", "reduce_or", "argmax", "argmin"), _reduction),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along("axis")),
    "concatenate": _along("dimension"),
    "sort": _along("dimension"),
    "rev": _reverse,
    "pad": _pad,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
}
