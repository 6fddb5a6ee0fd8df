"""What the dtypes hold: ranges, limits, and numbers as scalars."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _jax

Kind = Literal["bool", "int", "float", "complex", "other"]


@cache
def kind_of(dtype: Any) -> Kind:
    """What arithmetic a dtype has. Floats without infinities (most of 8 bits or less) are `other`."""
    if dtype is None or _jax.is_extended(dtype):
        return "other"
    if dtype == np.bool_:
        return "bool"
    if jnp.issubdtype(dtype, jnp.integer):
        return "int"
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return "complex"
    if jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize > 1:
        return "float"
    return "other"


@cache
def int_range(dtype: Any) -> tuple[int, int]:
    """The least and the greatest number of an integer dtype or bool."""
    if kind_of(dtype) == "bool":
        return 0, 1
    info = jnp.iinfo(dtype)
    return int(info.min), int(info.max)


@cache
def float_limits(dtype: Any) -> tuple[float, float, int]:
    """Of a floating dtype: the greatest number, the least normal one, and how many bits integers may have."""
    info = jnp.finfo(dtype)
    return float(info.max), float(info.tiny), int(info.nmant) + 1


def holds_exactly(dtype: Any, number: int) -> bool:
    """Whether a dtype holds this integer and all between it and zero."""
    kind = kind_of(dtype)
    if kind == "int":
        low, high = int_range(dtype)
        return low <= number <= high
    return kind == "float" and abs(number) <= 2 ** float_limits(dtype)[2]


def scalar(number: Any, dtype: Any) -> Any:
    """A number as a scalar of a dtype."""
    return np.asarray(number).astype(dtype)[()]


def same_bits(a: Any, b: Any) -> bool:
    """Whether two scalars are the same to the bit."""
    return np.asarray(a).dtype == np.asarray(b).dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def static_size(shape: tuple[Any, ...]) -> int | None:
    """The number of elements, or None when a dimension is symbolic."""
    return math.prod(shape) if all(type(d) is int for d in shape) else None
