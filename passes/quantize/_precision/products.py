"""Products of numbers of few bits, as JAX functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Dims = Any

Form = Literal["plain", "low", "differentiable", "fp8"]
"""How a product is written; see `dot`."""

_GREATEST: Final = 448.0
"""The greatest number of float8_e4m3fn."""


def cast(x: Array, *, dtype: str) -> Array:
    """`x` in another dtype."""
    return lax.convert_element_type(x, jnp.dtype(dtype))


def dot(a: Array, b: Array, *, dims: Dims, form: Form) -> Array:
    """The product of two arrays of one low dtype, accumulated in float32.

    Args:
        a: the left operand.
        b: the right operand.
        dims: `dimension_numbers` of `lax.dot_general`.
        form: `plain`: a float32 result. `differentiable`: the same, whose derivatives are low products as
            well: JAX would otherwise multiply float32 cotangents by low operands. `low`: a result of the
            operands' dtype. `fp8`: a float32 result of operands rounded to float8, scaled per tensor, whose
            derivatives are products in the operands' dtype.
    """
    if form == "plain":
        return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
    if form == "low":
        return _low(a, b, dims)
    made: Array = _with_low_derivatives(dims, form == "fp8")(a, b)
    return made


def convolution(lhs: Array, rhs: Array, *, params: Sequence[tuple[str, Any]], low: bool) -> Array:
    """The convolution of two arrays of one low dtype; a result of that dtype, or of float32.

    The operation itself gives the operands' dtype, which is the form that libraries have kernels for and
    whose derivatives are of that dtype too. They add in float32.
    """
    found = lax.conv_general_dilated(lhs, rhs, **dict(params))
    return found if low else found.astype(jnp.float32)


def _low(a: Array, b: Array, dims: Dims) -> Array:
    return lax.dot_general(a, b, dims, preferred_element_type=a.dtype)


@functools.lru_cache(maxsize=1024)
def _with_low_derivatives(dims: Dims, fp8: bool) -> Callable[[Array, Array], Array]:
    def product(a: Array, b: Array) -> Array:
        return _fp8(a, b, dims) if fp8 else lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)

    made = jax.custom_jvp(product)

    def rule(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[Array, Any]:
        (a, b), (ta, tb) = primals, tangents
        parts = []
        if not isinstance(ta, jax.custom_derivatives.SymbolicZero):
            parts.append(_low(ta, b, dims).astype(jnp.float32))
        if not isinstance(tb, jax.custom_derivatives.SymbolicZero):
            parts.append(_low(a, tb, dims).astype(jnp.float32))
        out = made(a, b)
        return out, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(out)

    made.defjvp(rule, symbolic_zeros=True)
    return made


def _fp8(a: Array, b: Array, dims: Dims) -> Array:
    (x, sx), (y, sy) = _quantised(a), _quantised(b)
    return lax.dot_general(x, y, dims, preferred_element_type=jnp.float32) * (sx * sy)


def _quantised(x: Array) -> tuple[Array, Array]:
    """`x` over its scale in float8_e4m3fn, and the scale: its greatest magnitude over 448; 1 for zeros."""
    wide = x.astype(jnp.float32)
    greatest = jnp.max(jnp.abs(wide), initial=0.0)
    scale = lax.select(greatest == 0.0, jnp.ones_like(greatest), greatest / _GREATEST)
    return (wide / scale).astype(jnp.float8_e4m3fn), scale
