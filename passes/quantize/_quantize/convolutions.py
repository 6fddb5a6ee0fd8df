"""Convolutions with a quantised kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import store
from lepton_jax.numerics.quantize import Scheme, decode, encode, scale_of
from lepton_jax.passes.quantize._quantize.learned import input_scale, of_weight
from lepton_jax.passes.quantize._quantize.observing import by_kind
from lepton_jax.passes.quantize._quantize.weights import Storage, as_float, kept

Convolution = tuple[tuple[str, Any], ...]
"""The parameters of a convolution, as sorted items."""


@dataclass(frozen=True)
class Filter:
    """How a convolution is quantised.

    Attributes:
        params: the convolution's.
        storage: how the kernel is kept.
        activations: how the image is quantised; None: not at all.
        precision: of a convolution in floats.
        result: the dtype of the result.
        kinds: what calibration has seen.
    """

    params: Convolution
    storage: Storage
    activations: Scheme | None
    precision: Any
    result: Any
    kinds: tuple[str, ...] = ()


def convolution(x: jax.Array, kernel: jax.Array, *others: jax.Array, how: Filter) -> jax.Array:
    """A convolution with a kernel that is kept in codes.

    Schemes of activations are symmetric, so that padding with zeros stays right.

    Args:
        others: what calibration has seen.
    """
    seen = by_kind(others, how.kinds)
    w = kept(kernel, how.storage, of_weight(seen))
    params = dict(how.params)
    if how.activations is None:
        kernel = decode(*w, how.storage.scheme, kernel.dtype)
        return lax.conv_general_dilated(
            x, kernel, **params, precision=how.precision, preferred_element_type=how.result
        )
    scale = _scale(x, seen, how.activations)
    codes = encode(x, scale, None, how.activations)
    kind = jnp.int32 if jnp.issubdtype(w.codes.dtype, jnp.integer) else jnp.float32
    total = lax.conv_general_dilated(codes, w.codes, **params, preferred_element_type=kind)
    numbers = params["dimension_numbers"]
    by_channel = _along(as_float(w.scale), numbers.rhs_spec[0], numbers.out_spec[1], total.ndim)
    by_sample = _along(as_float(scale), numbers.lhs_spec[0], numbers.out_spec[0], total.ndim)
    return (as_float(total) * by_channel * by_sample).astype(how.result)


def _scale(x: jax.Array, seen: dict[str, tuple[jax.Array, ...]], scheme: Scheme) -> jax.Array:
    """The scale of the image: from calibration, or by what it is."""
    found = input_scale(seen, scheme)
    scale: jax.Array = scale_of(x, scheme)[0] if found is None else store(found[0])
    return scale


def _along(scale: jax.Array, axis: int, place: int, rank: int) -> jax.Array:
    """A scale that has elements along one axis at most, put along another."""
    if scale.ndim == 0:
        return scale
    return lax.reshape(scale, [scale.shape[axis] if i == place else 1 for i in range(rank)])
