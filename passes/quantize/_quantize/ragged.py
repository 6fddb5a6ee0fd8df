"""Ragged products with quantised weights: each group of rows has a matrix of its own, as experts have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import store
from lepton_jax.ir.graph import Node
from lepton_jax.numerics.quantize import Scheme, decode, encode, scale_of
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
    """

    numbers: lax.RaggedDotDimensionNumbers
    storage: Storage
    activations: Scheme | None
    precision: Any
    result: Any
    kinds: tuple[str, ...] = ()

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


def _ragged(x: jax.Array, weight: jax.Array, sizes: jax.Array, how: Experts, kind: Any) -> jax.Array:
    precision = how.precision if how.activations is None else None
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
