"""Ragged products with quantised weights: each group of rows has a matrix of its own, as experts have."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import store
from lepton_jax.ir.graph import Node
from lepton_jax.numerics.quantize import Scheme, decode, encode, scale_of
from lepton_jax.passes.quantize._quantize.digits import added_up, digits_of, number_of_digits
from lepton_jax.passes.quantize._quantize.dots import Dims, in_result
from lepton_jax.passes.quantize._quantize.learned import input_scale, of_weight
from lepton_jax.passes.quantize._quantize.observing import by_kind
from lepton_jax.passes.quantize._quantize.weights import Storage, as_float, kept


@dataclass(frozen=True)
class Experts:
    """How a ragged product is quantised.

    Attributes:
        numbers: the dimension numbers.
        storage: how the weight is kept.
        activations: how the rows are quantised; None: not at all.
        precision: of a product in floats.
        result: the dtype of the result.
        kinds: what calibration has seen.
        digits: how many digits of int8 rows in floats are multiplied as; None: weights are decoded; 0: two,
            or three where they take no longer.
    """

    numbers: lax.RaggedDotDimensionNumbers
    storage: Storage
    activations: Scheme | None
    precision: Any
    result: Any
    kinds: tuple[str, ...] = ()
    digits: int | None = None

    @property
    def dims(self) -> Dims:
        """Of the product of one group."""
        (left, right), (mine, other) = self.numbers.dot_dimension_numbers
        return (tuple(left), tuple(right)), (tuple(mine), tuple(other))


def why_not(node: Node, side: int) -> str | None:
    """Why a ragged product is not quantised: its weight is no matrix for each group."""
    numbers = node.params["ragged_dot_dimension_numbers"]
    if side != 1 or not numbers.rhs_group_dimensions:
        return "it is what a ragged product cuts into groups"
    return None


def why_not_codes(node: Node) -> str | None:
    """Why rows are not quantised: scales are found by row for two dimensions alone."""
    rows, weight, sizes = node.operands
    (contracted, _), (batch, _) = node.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    if batch or (rows.ndim, weight.ndim, sizes.ndim, len(contracted)) != (2, 3, 1, 1):
        return "ragged products of more than two dimensions are decoded"
    return None


def experts(
    rows: jax.Array, weight: jax.Array, sizes: jax.Array, *others: jax.Array, how: Experts
) -> jax.Array:
    """A ragged product with weights that are kept in codes, a scale for each group and output.

    Args:
        sizes: how many rows each group has, in order.
        others: what calibration has seen.
    """
    seen = by_kind(others, how.kinds)
    known = of_weight(seen)
    if "hessian" in seen:  # of the rows of all groups together
        (group,) = how.numbers.rhs_group_dimensions
        known = jnp.broadcast_to(known, (weight.shape[group], *known.shape))
    w = kept(weight, how.storage, known)
    if how.digits is not None:
        total = _in_digits(rows.astype(jnp.float32), w.codes, sizes, how)
        return (total * _scales(as_float(w.scale), sizes, rows, how)).astype(how.result)
    if how.activations is None:
        decoded = decode(*w, how.storage.scheme, weight.dtype)
        return _ragged(rows, decoded, sizes, how, how.result)
    found = input_scale(seen, how.activations)
    scale = scale_of(rows, how.activations)[0] if found is None else store(found[0])
    codes = encode(rows, scale, None, how.activations)
    kind = jnp.int32 if jnp.issubdtype(w.codes.dtype, jnp.integer) else jnp.float32
    total = as_float(_ragged(codes, w.codes, sizes, how, kind))
    by_row = in_result(as_float(scale), 0, how.dims, 2)
    return (total * by_row * _scales(as_float(w.scale), sizes, rows, how)).astype(how.result)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _in_digits(rows: jax.Array, codes: jax.Array, sizes: jax.Array, how: Experts) -> jax.Array:
    """The product of rows in float32, each taken apart in digits that follow one another, with codes.

    Derivatives are those of the product of floats.
    """
    m, inner = rows.shape
    count = how.digits or number_of_digits(m)
    own, _ = scale_of(rows, Scheme("int8", shared=(1,)))
    digits = digits_of(rows, own, count).reshape(count, m, inner)
    digits = lax.transpose(digits, (1, 0, 2)).reshape(count * m, inner)
    several = count * sizes.astype(jnp.promote_types(sizes.dtype, jnp.int32))
    found = as_float(_ragged(digits, codes, several, how, jnp.int32)).reshape(m, count, -1)
    return added_up(found, count, 1).reshape(m, -1) * own


@_in_digits.defjvp
def _in_digits_jvp(how: Experts, primals: Any, tangents: Any) -> Any:
    rows, codes, sizes = primals
    slope = _ragged(tangents[0], codes.astype(jnp.float32), sizes, how, jnp.float32)
    return _in_digits(rows, codes, sizes, how), slope


def _ragged(x: jax.Array, weight: jax.Array, sizes: jax.Array, how: Experts, kind: Any) -> jax.Array:
    precision = how.precision if jnp.issubdtype(x.dtype, jnp.floating) and how.activations is None else None
    return lax.ragged_dot_general(
        x, weight, sizes, how.numbers, precision=precision, preferred_element_type=kind
    )


def _scales(scale: jax.Array, sizes: jax.Array, rows: jax.Array, how: Experts) -> jax.Array:
    """For each row the scales of its group: f32[rows, outputs]. Rows of no group have zeros for a product.

    Args:
        scale: of the weight's rank; its contracted axis has one element.
    """
    if scale.ndim == 0:
        return scale
    numbers = how.numbers
    (group,), (_, (summed,)) = numbers.rhs_group_dimensions, numbers.dot_dimension_numbers[0]
    of_groups = jnp.squeeze(jnp.moveaxis(scale, (group, summed), (0, 1)), 1)
    (ragged,) = numbers.lhs_ragged_dimensions
    places = jnp.arange(rows.shape[ragged], dtype=sizes.dtype)
    mine = jnp.searchsorted(jnp.cumsum(sizes), places, side="right", method="compare_all")
    return of_groups.at[mine].get(mode="clip")
