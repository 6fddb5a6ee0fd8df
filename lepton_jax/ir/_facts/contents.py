"""Facts of constants, read off their contents."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir._facts.closing import close, of_aval, splat_facts
from lepton_jax.ir._facts.dtypes import float_limits, kind_of, scalar
from lepton_jax.ir._facts.lattice import CONSTANT_LIMIT, Claims, Facts
from lepton_jax.ir.graph import Value

Array = np.ndarray[Any, Any]


def of_constant(value: Value) -> Facts:
    """Facts of a constant value; of a large one only what its dtype says."""
    if value.shape == () and (number := _number(value)) is not None:
        return splat_facts(number, ())
    if not _jax.is_array_aval(value.aval) or not value.is_static or math.prod(value.shape) > CONSTANT_LIMIT:
        return of_aval(value.aval)
    array = _jax.plain_constant(value.const)
    if array is None:
        return of_aval(value.aval)
    return of_array(np.asarray(array).astype(value.dtype, copy=False), value.aval)


_NUMBERS: Final = (bool, int, float, complex, np.generic)


def _number(value: Value) -> Any:
    """The number that a constant without dimensions is, as one of its dtype; None if it is none."""
    number = value.const if isinstance(value.const, _NUMBERS) else _jax.plain_constant(value.const)
    return None if number is None else scalar(number, value.dtype)


def of_array(array: Array, aval: Any) -> Facts:
    """Facts of the array that holds `array`, whose dtype is that of `aval`."""
    return close(aval, contents(array))


def contents(array: Array) -> Claims:
    """What the contents of an array say. An empty array says nothing."""
    if array.size == 0:
        return {}
    first = array.reshape(-1)[:1]
    if array.tobytes() == first.tobytes() * array.size:
        return {"splat": first[0]}
    array = array.view()
    array.flags.writeable = False
    claims: Claims = {"constant": array, **_range(array)}
    plain = _plain(array)
    claims["uniform"] = frozenset(
        d for d in range(plain.ndim) if _equal(plain, np.broadcast_to(plain.take([0], d), plain.shape))
    )
    claims["iota"] = _iota(plain)
    claims.update(_matrix(plain))
    return claims


def _plain(array: Array) -> Array:
    """The same numbers in a dtype that numpy computes with."""
    kind = kind_of(array.dtype)
    if kind in ("bool", "int") and array.dtype.kind not in "biu":
        return array.astype(np.int64)
    return array.astype(np.float64) if kind in ("float", "other") else array


def _equal(a: Array, b: Array) -> bool:
    return bool(np.all((a == b) | ((a != a) & (b != b))))


def _range(array: Array) -> Claims:
    kind = kind_of(array.dtype)
    plain = _plain(array)
    no_nan = not bool(np.any(plain != plain))
    if kind == "complex":
        return {
            "no_nan": no_nan,
            "finite": bool(np.isfinite(plain).all()),
            "nonzero": bool((plain != 0).all()),
        }
    if kind == "other":
        return {}
    if kind == "float":
        tiny = float_limits(array.dtype)[1]
        claims: Claims = {"no_nan": no_nan, "nonzero": bool(np.all((abs(plain) >= tiny) | (plain != plain)))}
        numbers = plain[plain == plain]
        if numbers.size:
            claims.update(least=float(numbers.min()), most=float(numbers.max()))
        return claims
    return {"least": int(plain.min()), "most": int(plain.max()), "nonzero": bool(np.all(plain != 0))}


def _iota(plain: Array) -> tuple[int, int, int] | None:
    """(dimension, start, step) when the elements are whole numbers that grow evenly along one dimension."""
    if plain.dtype.kind not in "iuf":
        return None
    for dimension, length in enumerate(plain.shape):
        if length < 2:
            continue
        line = plain[tuple(slice(None) if d == dimension else 0 for d in range(plain.ndim))]
        if not np.isfinite(line).all() or line[0] != int(line[0]) or line[1] != int(line[1]):
            continue
        start, step = int(line[0]), int(line[1]) - int(line[0])
        exact = [start + step * i for i in range(length)]
        if step == 0 or max(map(abs, exact)) >= 2**52 or line.tolist() != exact:
            continue
        shape = [length if d == dimension else 1 for d in range(plain.ndim)]
        if np.array_equal(plain, np.broadcast_to(line.reshape(shape), plain.shape)):
            return dimension, start, step
    return None


def _matrix(plain: Array) -> Claims:
    claims: Claims = {}
    binary = bool(np.all((plain == 0) | (plain == 1)))
    if binary:
        numbers = plain.astype(np.int64)
        axes = reversed(range(plain.ndim))
        claims["one_hot"] = next((d for d in axes if np.all(numbers.sum(d) <= 1)), None)
    if plain.ndim < 2:
        return claims
    rows, columns = plain.shape[-2:]
    offset = np.arange(columns) - np.arange(rows)[:, None]
    claims["lower"] = bool(np.all(plain[..., offset > 0] == 0))
    claims["upper"] = bool(np.all(plain[..., offset < 0] == 0))
    if rows != columns:
        return claims
    claims["exactly_symmetric"] = _equal(plain, plain.swapaxes(-1, -2))
    claims["identity"] = bool(np.all(plain == (offset == 0)))
    claims["permutation"] = binary and bool(np.all(plain.sum(-1) == 1) and np.all(plain.sum(-2) == 1))
    return claims
