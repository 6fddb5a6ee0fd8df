"""Ragged products, as mixtures of experts have them, of the rows of each group with its own matrix alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import jax.numpy as jnp

from lepton_jax.ir._primitives import RAGGED_ROWS, RAGGED_SUMS
from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import is_free, unplaced
from lepton_jax.rewrite import PassContext, Rule, RulePass, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome
from lepton_jax.targets.kernels.ragged import pays, ragged_product

_FLOATS: Final = (jnp.float32, jnp.bfloat16, jnp.float16)

_LEAST_BITS: Final = 32
"""Of what counts the rows: sums of smaller numbers may overflow, which JAX's form has a result for too."""


def why_not(node: Node, ctx: PassContext) -> str | None:
    """Why a ragged product is left to XLA."""
    if reason := unplaced(node, ctx):
        return reason
    if getattr(getattr(node.result.aval, "manual_axis_type", None), "varying", None):
        return "it differs from device to device of a mesh"
    if node.params.get("group_offset") is not None or not is_free(node):
        return "a first group or a sharding is asked for"
    left, right, sizes = node.operands
    if jnp.iinfo(sizes.dtype).bits < _LEAST_BITS:
        return f"rows are counted in {sizes.dtype}"
    if not pays(left.shape, right.shape, sizes.shape[0], left.dtype):
        return "a loop over its groups would take as long"
    return None


def _by_group(node: Node, forms: Sequence[Any], dtypes: Sequence[Any]) -> Outcome:
    """A ragged product of one of these forms and types by group."""
    numbers = node.params["ragged_dot_dimension_numbers"]
    if numbers not in forms or any(value.dtype not in dtypes for value in node.operands[:2]):
        return None
    if [value.ndim for value in node.operands] != [2, 2 if numbers == RAGGED_SUMS else 3, 1]:
        return None
    how = {"precision": node.params["precision"], "dtype": node.params["preferred_element_type"]}
    return rewrite(ragged_product, *node.operands, numbers=numbers, **how)


@node_rule("ragged_dot_general", level="reassociate", backends=("cpu",), guard=why_not)
def rows_by_group(node: Node, ctx: PassContext) -> Outcome:
    """ragged_dot(rows, weights, sizes) → for each group: its rows @ its weights

    XLA multiplies all rows, with zeros in place of those of other groups, with the weights of all groups.
    """
    return _by_group(node, RAGGED_ROWS, _FLOATS)


@node_rule("ragged_dot_general", level="reassociate", backends=("cpu",), guard=why_not)
def sums_by_group(node: Node, ctx: PassContext) -> Outcome:
    """ragged_dot(rows, slopes, sizes) that sums over the rows → for each group: its rowsᵀ @ its slopes

    The derivative of `rows-by-group` in the weights.
    """
    return _by_group(node, (RAGGED_SUMS,), _FLOATS)


@node_rule("ragged_dot_general", backends=("cpu",), guard=why_not)
def int8_rows_by_group(node: Node, ctx: PassContext) -> Outcome:
    """ragged_dot(rows, weights, sizes) of int8 → for each group: its rows @ its weights

    As `rows-by-group`, for the codes of `quantize`: the same integers.
    """
    is_wide = node.result.dtype == jnp.int32
    return _by_group(node, RAGGED_ROWS, (jnp.int8,)) if is_wide else None


RULES: Final[tuple[Rule, ...]] = (rows_by_group, sums_by_group, int8_rows_by_group)


@dataclass(frozen=True)
class RaggedProducts(RulePass):
    """Multiplies the rows of each group of a ragged product with the group's own matrix alone.

    Before:
        %3 = ragged_dot_general %rows %weights %sizes
    After:
        %3 = ragged_product %rows %weights %sizes

    On CPUs, where XLA multiplies all rows with the matrices of all groups: a loop over groups and tiles of
    rows in programs for one device, otherwise JAX's form. Derivatives are made of the same. At level
    `reassociate`: the same products are summed, in another order; those of int8 at `exact`.
    """

    name: ClassVar[str] = "ragged-products"
    rules: ClassVar[Sequence[Rule]] = RULES
    lowers: ClassVar[bool] = True
