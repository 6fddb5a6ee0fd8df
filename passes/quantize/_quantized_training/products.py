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
from lepton_jax.numerics.quantize import Scheme, quantize

Axes = tuple[tuple[int, ...], tuple[int, ...]]
Dims = tuple[Axes, Axes]


@dataclass(frozen=True)
class Formats:
    """In which formats a product runs.

    Attributes:
        left: of the left operand.
        right: of the right operand.
        gradient: of the gradients of the result, in the products that differentiate this one.
    """

    left: str
    right: str
    gradient: str


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
    (contracted, others), (batch, other_batch) = dims
    swapped: Dims = ((others, contracted), (other_batch, batch))
    to_left = _slope(slope, left, right, dims, formats.gradient, formats.right, is_left=True)
    to_right = _slope(slope, right, left, swapped, formats.gradient, formats.left, is_left=False)
    return to_left.astype(left.dtype), to_right.astype(right.dtype)


_product.defvjp(_forward, _backward)


def _slope(
    slope: jax.Array, x: jax.Array, y: jax.Array, dims: Dims, own: str, form: str, *, is_left: bool
) -> jax.Array:
    """The gradient of the product of `x` and `y` with respect to `x`.

    Args:
        slope: the gradient of the result.
        dims: the dimension numbers, those of `x` first.
        own: the format of the slope.
        form: that of `y`, if both are integers or both are float8.
        is_left: whether `x` is the left operand.
    """
    (x_contracted, y_contracted), (x_batch, y_batch) = dims
    x_free = _others(x.ndim, x_contracted, x_batch)
    y_free = _others(y.ndim, y_contracted, y_batch)
    first = len(x_batch) + (len(x_free) if is_left else 0)
    free = tuple(range(first, first + len(y_free)))
    if get_format(form).kind != get_format(own).kind:
        form = own
    pairs: Dims = ((free, y_free), (tuple(range(len(x_batch))), tuple(y_batch)))
    found = of_codes(slope, y, pairs, own, form)
    ordered = [x_contracted[i] for i in np.argsort(y_contracted)]
    return lax.transpose(found, tuple(np.argsort([*x_batch, *x_free, *ordered]).tolist()))


def _others(rank: int, *taken: Sequence[int]) -> tuple[int, ...]:
    return tuple(i for i in range(rank) if not any(i in axes for axes in taken))


def of_codes(left: jax.Array, right: jax.Array, dims: Dims, *forms: str) -> jax.Array:
    """A product of two arrays of floats, each rounded to a format by its largest element: float32.

    Integers have a scale for all that is contracted together, float8 one for the whole array.
    """
    (a, by_a), (b, by_b) = (
        _codes(x, axes, form) for x, axes, form in zip((left, right), dims[0], forms, strict=True)
    )
    kind = jnp.int32 if jnp.issubdtype(a.dtype, jnp.integer) else jnp.float32
    total = lax.dot_general(a, b, dims, preferred_element_type=kind).astype(jnp.float32)
    if by_a.size == by_b.size == 1:
        return total * (by_a.reshape(()) * by_b.reshape(()))
    scale = lax.dot_general(by_a, by_b, dims, precision=lax.Precision.HIGHEST)  # sums of one term
    return total * scale


def _codes(x: jax.Array, contracted: Sequence[int], form: str) -> tuple[jax.Array, jax.Array]:
    shared = tuple(contracted) if get_format(form).kind == "integer" else None
    found = quantize(x, Scheme(form, shared=shared))
    return found.codes, found.scale
