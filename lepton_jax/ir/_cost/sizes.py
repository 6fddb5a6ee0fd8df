"""How large arrays are. A symbolic dimension counts as 1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Value


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
def dtype_name(dtype: Any) -> str:
    """A dtype's name, as `Rates.flops` has it."""
    return str(np.dtype(dtype).name)
