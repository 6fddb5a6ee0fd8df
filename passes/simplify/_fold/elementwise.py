"""Elementwise operations in numpy, as XLA defines them.

Where the two differ (division by zero of integers, shifts by too much, conversions out of
range) or hardware may (subnormal numbers), the functions raise `Unfoldable`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import jax.numpy as jnp
import numpy as np

from lepton_jax.passes.simplify._algebra.operands import kind_of

Array: TypeAlias = np.ndarray[Any, Any]
Function: TypeAlias = Callable[..., Any]
Params: TypeAlias = Mapping[str, Any]


class Unfoldable(Exception):
    """An operation that cannot be computed here, for the reason that it says."""


def require(condition: bool, reason: str) -> None:
    """Raise `Unfoldable` unless a condition holds."""
    if not condition:
        raise Unfoldable(reason)


def refuse_subnormal(*arrays: Array) -> None:
    """Raise `Unfoldable` where floating numbers are subnormal: hardware may flush them to zero."""
    for array in arrays:
        if kind_of(array.dtype) == "float":
            size = np.abs(array)
            require(not np.any((size > 0) & (size < jnp.finfo(array.dtype).tiny)), "subnormal numbers")


def _refuse_two_zeros(*arrays: Array) -> None:
    """Raise `Unfoldable` where zeros of both signs meet: which is greater is not defined."""
    if kind_of(arrays[0].dtype) == "float":
        signs = {bool(s) for array in arrays for s in np.unique(np.signbit(array[array == 0]))}
        require(len(signs) < 2, "zeros of both signs")


# Operations that round as every machine does


def _divide(params: Params, x: Array, y: Array) -> Any:
    if kind_of(x.dtype) != "int":
        return np.divide(x, y)
    require(bool(np.all(y != 0)), "integer division by zero")
    quotient = np.floor_divide(x, y)
    inexact = (x - quotient * y != 0) & ((x < 0) != (y < 0))
    return quotient + inexact.astype(x.dtype)


def _remainder(params: Params, x: Array, y: Array) -> Any:
    require(kind_of(x.dtype) == "float" or bool(np.all(y != 0)), "integer division by zero")
    return np.fmod(x, y)


def _maximum(params: Params, x: Array, y: Array) -> Any:
    _refuse_two_zeros(x, y)
    return np.maximum(x, y)


def _minimum(params: Params, x: Array, y: Array) -> Any:
    _refuse_two_zeros(x, y)
    return np.minimum(x, y)


def _clamp(params: Params, low: Array, x: Array, high: Array) -> Any:
    _refuse_two_zeros(low, x, high)
    return np.minimum(np.maximum(x, low), high)


def _sign(params: Params, x: Array) -> Any:
    return np.where(x > 0, np.ones_like(x), np.where(x < 0, -np.ones_like(x), x))


def _round(params: Params, x: Array) -> Any:
    if int(params["rounding_method"]) == 1:
        return np.rint(x)
    whole = np.trunc(x)  # the other method rounds halves away from zero
    return whole + np.copysign((np.abs(x - whole) >= 0.5).astype(x.dtype), x)


def _select(params: Params, which: Array, *cases: Array) -> Any:
    if which.dtype == np.bool_:
        return np.where(which, cases[1], cases[0])
    require(which.ndim == 0 and 0 <= int(which) < len(cases), "a choice between many for each element")
    return cases[int(which)]


def _integer_pow(params: Params, x: Array) -> Any:
    if kind_of(x.dtype) == "float":
        return _rounded(lambda a: np.power(a, float(params["y"])))({}, x)
    require(0 <= params["y"] <= 64, "too large a power")
    return np.power(x, np.asarray(params["y"], x.dtype))


def _shift(function: Function) -> Function:
    def shift(params: Params, x: Array, by: Array) -> Any:
        require(bool(np.all((by >= 0) & (by < jnp.iinfo(x.dtype).bits))), "a shift out of range")
        return function(x, by)

    return shift


def _logical_right(x: Array, by: Array) -> Any:
    unsigned = np.dtype(f"uint{x.dtype.itemsize * 8}")
    return np.right_shift(x.astype(unsigned), by.astype(unsigned)).astype(x.dtype)


def _convert(params: Params, x: Array) -> Any:
    source, target = kind_of(x.dtype), kind_of(params["new_dtype"])
    dtype = np.dtype(params["new_dtype"])
    require(params.get("sharding") is None, "a conversion that also places")
    require("other" not in (source, target), "a conversion of unusual numbers")
    require(source != "complex" or target == "complex", "a conversion that drops a part")
    if target == "bool":
        return x != 0
    if source == "float" and target == "int":
        info = jnp.iinfo(dtype)
        whole = np.trunc(x.astype(np.float64))
        fits = (whole >= float(info.min)) & (whole < float(info.max) + 1)
        require(bool(np.all(fits)), "a conversion out of range")
        return whole.astype(dtype)
    if dtype == jnp.bfloat16 and x.dtype != np.bool_:
        # It goes by way of float32, which must not round on its part.
        require(bool(np.all((x.astype(np.float32) == x) | (x != x))), "a conversion that rounds twice")
        return x.astype(np.float32).astype(dtype)
    return x.astype(dtype)


def _plain(function: Function) -> Function:
    def apply(params: Params, *arrays: Array) -> Any:
        return function(*arrays)

    return apply


_COMPUTING: Final[dict[str, Function]] = {
    "add": _plain(np.add),
    "add_any": _plain(np.add),
    "sub": _plain(np.subtract),
    "mul": _plain(np.multiply),
    "div": _divide,
    "rem": _remainder,
    "square": _plain(lambda x: np.multiply(x, x)),
    "sqrt": _plain(np.sqrt),
    "floor": _plain(np.floor),
    "ceil": _plain(np.ceil),
    "round": _round,
    "max": _maximum,
    "min": _minimum,
    "clamp": _clamp,
    "sign": _sign,
    "integer_pow": _integer_pow,
    "eq": _plain(np.equal),
    "ne": _plain(np.not_equal),
    "lt": _plain(np.less),
    "le": _plain(np.less_equal),
    "gt": _plain(np.greater),
    "ge": _plain(np.greater_equal),
    "convert_element_type": _convert,
}

_MOVING: Final[dict[str, Function]] = {
    "neg": _plain(np.negative),
    "abs": _plain(np.abs),
    "not": _plain(np.invert),
    "and": _plain(np.bitwise_and),
    "or": _plain(np.bitwise_or),
    "xor": _plain(np.bitwise_xor),
    "shift_left": _shift(np.left_shift),
    "shift_right_arithmetic": _shift(np.right_shift),
    "shift_right_logical": _shift(_logical_right),
    "is_finite": _plain(np.isfinite),
    "select_n": _select,
    "real": _plain(np.real),
    "imag": _plain(np.imag),
}
"""Operations that do no floating arithmetic, so that subnormal numbers pass."""


# Operations that round in a way of their own


def _rounded(function: Function) -> Function:
    """Compute in double precision and round once."""

    def apply(params: Params, *arrays: Array) -> Any:
        require(all(kind_of(a.dtype) in ("float", "int") for a in arrays), "not a function of real numbers")
        require(params.get("accuracy") is None, "a chosen accuracy")
        return np.asarray(function(*(a.astype(np.float64) for a in arrays))).astype(arrays[0].dtype)

    return apply


_ROUNDED: Final[dict[str, Function]] = {
    name: _rounded(getattr(np, numpy_name))
    for name, numpy_name in {
        "exp": "exp",
        "exp2": "exp2",
        "expm1": "expm1",
        "log": "log",
        "log1p": "log1p",
        "sin": "sin",
        "cos": "cos",
        "tan": "tan",
        "asin": "arcsin",
        "acos": "arccos",
        "atan": "arctan",
        "atan2": "arctan2",
        "sinh": "sinh",
        "cosh": "cosh",
        "tanh": "tanh",
        "asinh": "arcsinh",
        "acosh": "arccosh",
        "atanh": "arctanh",
        "cbrt": "cbrt",
        "pow": "power",
    }.items()
} | {
    "rsqrt": _rounded(lambda x: 1.0 / np.sqrt(x)),
    "logistic": _rounded(lambda x: 1.0 / (1.0 + np.exp(-x))),
}

OPS: Final = frozenset({*_COMPUTING, *_MOVING, *_ROUNDED})
"""What `compute` knows: operations that make each element of the result from one element of each operand."""


def rounds(op: str, result: Array) -> bool:
    """Whether the last bit of an operation's result depends on who computes it."""
    return op in _ROUNDED or (op == "integer_pow" and kind_of(result.dtype) == "float")


def compute(op: str, params: Params, arrays: list[Array]) -> Array:
    """The result of an elementwise operation; scalars stand for arrays.

    Raises:
        Unfoldable: it cannot be computed here, or not with the same bits.
    """
    with np.errstate(all="ignore"):
        if op in _MOVING:
            return np.asarray(_MOVING[op](params, *arrays))
        refuse_subnormal(*arrays)
        if op != "convert_element_type" and any(kind_of(a.dtype) in ("complex", "other") for a in arrays):
            raise Unfoldable("complex arithmetic")
        function = _COMPUTING.get(op) or _ROUNDED[op]
        result = np.asarray(function(params, *arrays))
        refuse_subnormal(result)
    return result
