"""How one use of a weight is quantised, or why it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lepton_jax.ir.graph import Value
from lepton_jax.numerics.formats import get_format
from lepton_jax.numerics.hessian import MatrixLayout, conv_layout
from lepton_jax.passes._weights.moments import ChannelsSeen, HessianSeen, conv_hessian
from lepton_jax.passes._weights.uses import GEOMETRY, WeightUse, indexed_axis
from lepton_jax.passes._weights.watching import Watcher
from lepton_jax.passes.quantize._quantize import convolutions, dots, ragged, tables
from lepton_jax.passes.quantize._quantize.blocks import channels_of_block
from lepton_jax.passes.quantize._quantize.forms import digits_for, digits_of_rows
from lepton_jax.passes.quantize._quantize.planning import (
    activations_of,
    in_floats,
    joined,
    not_balanced,
    remark_of,
    scheme_of,
    short_group,
    storage_of,
    why_not_codes,
    why_not_convolved,
    words_of,
)
from lepton_jax.passes.quantize._quantize.training import Trained, rounding_of, watchers_of
from lepton_jax.rewrite import PassContext

if TYPE_CHECKING:
    from lepton_jax.passes.quantize.quantize import Quantize

_FEWEST_IN_COLUMN: Final = 16
"""Elements of a column, from which on each column of the matrices in a table has a scale, as experts need."""


@dataclass(frozen=True)
class Plan:
    """What to put in place of an operation.

    Attributes:
        fun: the function of the operands and of what calibration saw.
        how: its static argument.
        done: in words.
        watchers: what calibration has to see.
        remark: what else the user should know.
        trained: what training puts there instead.
        given: what calibration saw, where that is known already.
        mean: of the input, where the bias is corrected.
    """

    fun: Any
    how: Any
    done: str
    watchers: tuple[Watcher, ...] = ()
    remark: str = ""
    trained: Trained | None = None
    given: tuple[Value, ...] = ()
    mean: Value | None = None


def plan(use: WeightUse, settings: Quantize, ctx: PassContext) -> Plan | str:
    """How a use of a weight is quantised, or why it cannot be."""
    return _PLANS[use.node.op](use, settings, ctx)


def _dot(use: WeightUse, settings: Quantize, ctx: PassContext) -> Plan | str:
    node, side = use.node, use.side
    dims = node.params["dimension_numbers"]
    contracted, batch = dims[0][side], dims[1][side]
    if not contracted:
        return "an outer product has nothing to save"
    axis = max(contracted, key=lambda i: use.weight.shape[i])
    layout = MatrixLayout(contracted, batch)
    scheme = scheme_of(settings, use.weight.ndim, contracted, axis)
    reason = why_not_codes(scheme, settings)
    if reason is None and scheme.group_sizes and ctx.rates.platform == "cpu":
        reason = "a cpu multiplies codes in groups slower than floats"
    storage = storage_of(scheme, settings, reason, layout)
    rows = dims[0][1 - side]
    activations = None if reason else activations_of(settings, rows)
    balance = settings.balance if settings.balance != "none" and len(contracted) == 1 and not batch else None
    watchers = watchers_of(storage, activations, settings)
    if balance is not None:
        watchers.append(ChannelsSeen(rows[0]))
    if settings.method == "gptq":
        sizes = tuple(use.weight.shape[i] for i in batch)
        size = math.prod(use.weight.shape[i] for i in contracted)
        watchers.append(HessianSeen(rows, dims[1][1 - side], size, sizes))
    on_cpu = ctx.rates.platform == "cpu" and activations is None
    how = dots.Product(
        side=side,
        dims=dims,
        storage=storage,
        activations=activations,
        precision=node.params["precision"],
        result=node.results[0].dtype,
        balance=balance,
        kinds=tuple(watcher.kind for watcher in watchers),
        block=channels_of_block(use.weight.shape, contracted, batch) if on_cpu else 0,
        digits=digits_for(use, storage, activations, ctx) if settings.products == "auto" else None,
    )
    done = words_of(storage, settings, activations) + (f", {balance}" if balance else "")
    in_digits = how.digits is not None and activations is None
    done += "; activations in digits of int8" if in_digits else ""
    left = "" if in_digits else remark_of(storage, settings, reason, ctx)
    short = short_group(storage, use.weight.shape)
    remark = joined(left, not_balanced(settings, balance), short)
    trained = rounding_of(storage, activations, watchers)
    return Plan(dots.product, how, done, tuple(watchers), remark, trained)


def _ragged(use: WeightUse, settings: Quantize, ctx: PassContext) -> Plan | str:
    node = use.node
    if reason := ragged.why_not(node, use.side):
        return reason
    numbers = node.params["ragged_dot_dimension_numbers"]
    (rows, contracted), (_, batch) = numbers.dot_dimension_numbers
    shape = use.weight.shape
    axis = max(contracted, key=lambda i: shape[i])
    scheme = scheme_of(settings, use.weight.ndim, contracted, axis)
    refused, by_group = why_not_codes(scheme, settings), ragged.why_not_codes(node)
    if settings.activations != "none":
        refused = refused or by_group
        if scheme.group_sizes or not scheme.symmetric:
            refused = "ragged products take one scale for each output, without zero points"
    layout = MatrixLayout(contracted, (*batch, *numbers.rhs_group_dimensions))
    one_by_one = settings.method == "gptq" and bool(batch)
    storage = storage_of(
        scheme, replace(settings, method="round") if one_by_one else settings, refused, layout
    )
    activations = None if refused else activations_of(settings, rows)
    decodes = settings.products != "auto" or activations is not None or by_group is not None
    watchers = watchers_of(storage, activations, settings)
    if storage.method == "gptq":
        watchers.append(HessianSeen(rows, (), math.prod(shape[i] for i in contracted), ()))
    how = ragged.Experts(
        numbers=numbers,
        storage=storage,
        activations=activations,
        precision=node.params["precision"],
        result=node.results[0].dtype,
        kinds=tuple(watcher.kind for watcher in watchers),
        digits=None if decodes else digits_of_rows(node, storage, ctx),
    )
    in_digits = how.digits is not None
    left = "" if in_digits else remark_of(storage, settings, refused, ctx)
    remark = joined(left, not_balanced(settings, None), short_group(storage, shape))
    trained = rounding_of(storage, activations, watchers)
    done = words_of(storage, settings, activations)
    done += "; activations in digits of int8" if in_digits else ""
    return Plan(ragged.experts, how, done, tuple(watchers), remark, trained)


def _convolution(use: WeightUse, settings: Quantize, ctx: PassContext) -> Plan | str:
    node = use.node
    if use.side != 1:
        return "the weight is the image of the convolution"
    if node.params["batch_group_count"] != 1:
        return "convolutions with batch groups are the gradients of others"
    numbers, groups = node.params["dimension_numbers"], node.params["feature_group_count"]
    kernel = numbers.rhs_spec
    axis = kernel[1] if settings.group or get_format(settings.weights).block else None
    scheme = scheme_of(settings, use.weight.ndim, tuple(kernel[1:]), axis)
    reason = why_not_codes(scheme, settings) or why_not_convolved(scheme, ctx)
    if settings.activations != "none" and (scheme.group_sizes or not scheme.symmetric):
        reason = "convolutions take one scale for each output channel, without zero points"
    storage = storage_of(scheme, settings, reason, conv_layout(kernel, groups))
    activations = None if reason else activations_of(settings, tuple(numbers.lhs_spec[1:]))
    params = tuple((name, node.params[name]) for name in GEOMETRY)
    watchers = watchers_of(storage, activations, settings)
    if settings.method == "gptq":
        watchers.append(conv_hessian(use, params))
    how = convolutions.Filter(
        params=params,
        storage=storage,
        activations=activations,
        precision=node.params["precision"],
        result=node.results[0].dtype,
        kinds=tuple(watcher.kind for watcher in watchers),
    )
    done = words_of(storage, settings, activations)
    slow = in_floats(node, reason, ctx)
    short = short_group(storage, use.weight.shape)
    remark = joined(remark_of(storage, settings, reason, ctx) or slow, not_balanced(settings, None), short)
    trained = rounding_of(storage, activations, watchers)
    return Plan(convolutions.convolution, how, done, tuple(watchers), remark, trained)


def _table(use: WeightUse, settings: Quantize, ctx: PassContext) -> Plan | str:
    node = use.node
    axis = indexed_axis(node)
    if axis is None:
        return "it does not take whole rows"
    fill = node.params["fill_value"]
    if fill is not None and not np.isnan(fill) and fill != 0:
        return f"rows out of bounds are filled with {fill}"
    if not settings.symmetric:
        return "tables have no zero points"
    others = tuple(i for i in range(use.weight.ndim) if i != axis)
    longest = max(others, key=lambda i: use.weight.shape[i])
    of_matrices = len(others) > 1 and use.weight.shape[longest] >= _FEWEST_IN_COLUMN
    scheme = scheme_of(settings, use.weight.ndim, (longest,) if of_matrices else others, longest)
    if settings.per == "tensor" and not scheme.group_sizes:
        return "tables have a scale for each row"
    if settings.method == "gptq":
        settings = replace(settings, method="round")
    storage = storage_of(scheme, settings, why_not_codes(scheme, settings))
    names = ("dimension_numbers", "unique_indices", "indices_are_sorted", "mode", "fill_value")
    watchers = watchers_of(storage, None, settings)
    kinds = tuple(watcher.kind for watcher in watchers)
    how = tables.Rows(axis, storage, tuple((name, node.params[name]) for name in names), kinds)
    done = words_of(storage, settings, None)
    if not of_matrices:
        done = done.replace("per channel", "per row")
    trained = rounding_of(storage, None, watchers)
    remark = short_group(storage, use.weight.shape)
    return Plan(tables.rows, how, done, tuple(watchers), remark, trained)


_PLANS: Final = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _table,
    "ragged_dot_general": _ragged,
}
