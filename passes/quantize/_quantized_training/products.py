"""Products on codes, forwards and backwards, as JAX functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.numerics.formats import get_format
from lepton_jax.numerics.quantize import Scheme, encode, scale_of
from lepton_jax.numerics.stochastic import encode_stochastic, key_of

Axes = tuple[tuple[int, ...], tuple[int, ...]]
Dims = tuple[Axes, Axes]


@dataclass(frozen=True)
class Rounding:
    """How numbers become codes.

    Attributes:
        form: the format.
        stochastic: at random rather than to nearest.
    """

    form: str
    stochastic: bool = False

    def in_format_with(self, other: Rounding) -> Rounding:
        """The same, in the format of another where both cannot be multiplied."""
        alike = get_format(self.form).kind == get_format(other.form).kind
        return self if alike else Rounding(other.form, self.stochastic)

    def codes(self, x: jax.Array, scale: jax.Array, scheme: Scheme) -> jax.Array:
        """Codes of numbers under a scale."""
        if self.stochastic:
            return encode_stochastic(x, scale, scheme, key_of(x))
        return encode(x, scale, None, scheme)


@dataclass(frozen=True)
class Formats:
    """In which formats a product runs.

    Attributes:
        left: of the left operand.
        right: of the right operand.
        gradient: of the gradients of the result, in the products that differentiate this one.
    """

    left: Rounding
    right: Rounding
    gradient: Rounding


def product(left: jax.Array, right: jax.Array, *, dims: Dims, formats: Formats, result: Any) -> jax.Array:
    """`lax.dot_general` on codes; its derivatives are products on codes too. Reverse mode only.

    Args:
        left: floats.
        right: floats.
        dims: the dimension numbers.
        formats: of the codes.
        result: the dtype of the result.
    """
    found: jax.Array = _product(dims, formats, left, right)
    return found.astype(result)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(dims: Dims, formats: Formats, left: jax.Array, right: jax.Array) -> jax.Array:
    return of_codes(left, right, dims, formats.left, formats.right)


def _forward(dims: Dims, formats: Formats, left: jax.Array, right: jax.Array) -> Any:
    return _product(dims, formats, left, right), (left, right)


def _backward(dims: Dims, formats: Formats, kept: Any, slope: jax.Array) -> Any:
    left, right = kept
    own = formats.gradient
    pairs, order = slope_dims(left.ndim, right.ndim, dims, is_left=True)
    to_left = of_codes(slope, right, pairs, own, formats.right.in_format_with(own))
    others, other_order = slope_dims(right.ndim, left.ndim, swapped(dims), is_left=False)
    to_right = of_codes(slope, left, others, own, formats.left.in_format_with(own))
    return (
        lax.transpose(to_left, order).astype(left.dtype),
        lax.transpose(to_right, other_order).astype(right.dtype),
    )


_product.defvjp(_forward, _backward)


def swapped(dims: Dims) -> Dims:
    """Dimension numbers of the same product with its operands in the other order."""
    (contracted, others), (batch, other_batch) = dims
    return (others, contracted), (other_batch, batch)


def slope_dims(x_ndim: int, y_ndim: int, dims: Dims, *, is_left: bool) -> tuple[Dims, tuple[int, ...]]:
    """How the gradient of a product of `x` and `y` with respect to `x` is made of the result's and `y`.

    Args:
        x_ndim: the rank of `x`.
        y_ndim: that of `y`.
        dims: the dimension numbers, those of `x` first.
        is_left: whether `x` is the left operand.

    Returns:
        The dimension numbers of the result's gradient and `y`, and how to transpose what they give.
    """
    (x_contracted, y_contracted), (x_batch, y_batch) = dims
    x_free = _others(x_ndim, x_contracted, x_batch)
    y_free = _others(y_ndim, y_contracted, y_batch)
    first = len(x_batch) + (len(x_free) if is_left else 0)
    free = tuple(range(first, first + len(y_free)))
    pairs: Dims = ((free, y_free), (tuple(range(len(x_batch))), tuple(y_batch)))
    ordered = [x_contracted[i] for i in np.argsort(y_contracted)]
    return pairs, tuple(np.argsort([*x_batch, *x_free, *ordered]).tolist())


def _others(rank: int, *taken: Sequence[int]) -> tuple[int, ...]:
    return tuple(i for i in range(rank) if not any(i in axes for axes in taken))


def of_codes(left: jax.Array, right: jax.Array, dims: Dims, *roundings: Rounding) -> jax.Array:
    """A product of two arrays of floats, each rounded to a format by its largest element: float32.

    Integers have a scale for all that is contracted together, float8 one for the whole array.
    """
    (a, by_a), (b, by_b) = (
        _codes(x, axes, how) for x, axes, how in zip((left, right), dims[0], roundings, strict=True)
    )
    total = total_of(a, b, dims)
    if by_a.size == by_b.size == 1:
        return total * (by_a.reshape(()) * by_b.reshape(()))
    scale = lax.dot_general(by_a, by_b, dims, precision=lax.Precision.HIGHEST)  # sums of one term
    return total * scale


def total_of(a: jax.Array, b: jax.Array, dims: Dims) -> jax.Array:
    """The product of codes, float32; exact for integers before that."""
    kind = jnp.int32 if jnp.issubdtype(a.dtype, jnp.integer) else jnp.float32
    return lax.dot_general(a, b, dims, preferred_element_type=kind).astype(jnp.float32)


def _codes(x: jax.Array, contracted: Sequence[int], how: Rounding) -> tuple[jax.Array, jax.Array]:
    shared = tuple(contracted) if get_format(how.form).kind == "integer" else None
    scheme = Scheme(how.form, shared=shared)
    scale, _ = scale_of(x, scheme)
    return how.codes(x, scale, scheme), scale
