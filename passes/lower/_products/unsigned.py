"""Products of int8 whose weight is kept as uint8: 128 more."""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir import _primitives

_SHIFT: Final = 128


def as_unsigned(codes: jax.Array) -> jax.Array:
    """Codes of int8 as uint8, 128 more: the same bits but for the first.

    Example:
        >>> as_unsigned(jnp.array([-128, 0, 127], jnp.int8)).tolist()
        [0, 128, 255]
    """
    unsigned: jax.Array = lax.bitcast_convert_type(codes, jnp.uint8) ^ jnp.uint8(_SHIFT)
    return unsigned


def as_signed(codes: jax.Array) -> jax.Array:
    """The codes that `as_unsigned` was given.

    Example:
        >>> as_signed(as_unsigned(jnp.array([-128, 0, 127], jnp.int8))).tolist()
        [-128, 0, 127]
    """
    signed: jax.Array = lax.bitcast_convert_type(codes ^ jnp.uint8(_SHIFT), jnp.int8)
    return signed


def product_with_codes(weight: jax.Array, x: jax.Array, *, by_rows: bool) -> jax.Array:
    """w·xᵀ of int8 numbers, the weight given as `as_unsigned` makes it.

    What the shift adds, 128 times the sums of the activations, is subtracted. Sums that int32 does not hold
    wrap around, as they do in a product of int8: so the result is the same in any case.

    Args:
        weight: uint8 [..., N, K].
        x: int8 [..., M, K], or [..., K, M] where not `by_rows`.

    Returns:
        int32 [..., N, M].

    Example:
        >>> w, x = jnp.array([[1, -2], [3, 4]], jnp.int8), jnp.array([[5, 6]], jnp.int8)
        >>> product_with_codes(as_unsigned(w), x, by_rows=True).tolist()
        [[-7], [39]]
    """
    n = weight.ndim - 2
    both = (tuple(range(n)),) * 2
    numbers = (((n + 1,), (n + 1 if by_rows else n,)), both)
    # A product of few rows is fast from four on; a sum of int8 in a loop of its own is not.
    shifts = jnp.full((*weight.shape[:-2], 4, weight.shape[-1]), _SHIFT, jnp.uint8)
    more = lax.slice_in_dim(_primitives.unsigned_product(shifts, x, numbers), 0, 1, axis=n)
    return _primitives.unsigned_product(weight, x, numbers) - more
