"""How one use of a weight is quantised, or why it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lepton_jax.ir.graph import Node, Value
from lepton_jax.numerics.formats import Format, get_format
from lepton_jax.numerics.hessian import MatrixLayout, conv_layout
from lepton_jax.numerics.learned import kind_of
from lepton_jax.numerics.quantize import Scheme, padding
from lepton_jax.passes._weights.moments import ChannelsSeen, HessianSeen, conv_hessian
from lepton_jax.passes._weights.uses import GEOMETRY, WeightUse, indexed_axis
from lepton_jax.passes._weights.watching import Watcher
from lepton_jax.passes.lower._convolution.window import window_of
from lepton_jax.passes.lower._integer_convolution.common import channels_of, is_shifted, is_taken_apart
from lepton_jax.passes.quantize._quantize import convolutions, dots, tables
from lepton_jax.passes.quantize._quantize.blocks import channels_of_block
from lepton_jax.passes.quantize._quantize.training import Trained, rounding_of, watchers_of
from lepton_jax.passes.quantize._quantize.weights import Storage
from lepton_jax.rewrite import PassContext
from lepton_jax.targets.convolution_forms import convolution_form, has_dot_products

if TYPE_CHECKING:
    from lepton_jax.passes.quantize.quantize import Quantize

_LAYOUT: Final = MatrixLayout()

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


def _scheme(settings: Quantize, rank: int, shared: tuple[int, ...], axis: int | None) -> Scheme:
    """The scheme of a weight.

    Args:
        shared: the axes that are contracted, so that a scale can be taken out of the sum.
        axis: along which groups are made.
    """
    form = get_format(settings.weights)
    grouped = (settings.group or form.block) and axis is not None
    if settings.per == "tensor" and not grouped:
        shared = tuple(range(rank))
    return Scheme(
        form,
        symmetric=settings.symmetric,
        shared=tuple(i for i in shared if not grouped or i != axis),
        group=settings.group if grouped and not form.block else None,
        group_axis=axis if grouped else None,
        search=settings.search,
    )


def _words(storage: Storage, settings: Quantize, activations: Scheme | None) -> str:
    scheme = storage.scheme
    share = f"groups of {scheme.group_sizes[0]}" if scheme.group_sizes else f"per {settings.per}"
    words = f"{scheme.fmt.name}, {share}" + ("" if scheme.symmetric else ", affine")
    words += "" if storage.method == "round" else f", {storage.method}"
    words += "" if settings.train == "none" else f", {settings.train}"
    return words if activations is None else f"{words}; activations {activations.fmt}, {settings.activations}"


def _activations(settings: Quantize, shared: tuple[int, ...]) -> Scheme:
    """The scheme of activations: a scale for each row, whose axes are shared, or one for all."""
    whole = settings.rows == "tensor" or settings.activations == "static"
    return Scheme(_activation_format(settings), shared=None if whole else shared)


def _activation_format(settings: Quantize) -> Format:
    form = get_format(settings.weights)
    default = "int8" if form.kind == "integer" else form.name
    return get_format(settings.activation_format or default)


def _why_not_codes(scheme: Scheme, settings: Quantize) -> str | None:
    """Why activations are not quantised with such weights."""
    if settings.activations == "none":
        return "only weights"
    weights, activations = scheme.fmt, _activation_format(settings)
    if weights.kind != "integer" and weights.dtype.kind in "iu":
        return f"codes of {weights} cannot be multiplied as they are"
    if activations.kind != weights.kind or activations.block or weights.block:
        return f"weights in {weights} and activations in {activations} cannot be multiplied as they are"
    if scheme.group_sizes and not scheme.symmetric:
        return "groups with zero points are decoded"
    return None


def _storage(
    scheme: Scheme, settings: Quantize, reason: str | None, layout: MatrixLayout = _LAYOUT
) -> Storage:
    """How a weight is kept: packed if that was asked for, or if its codes are decoded in any case."""
    packed = settings.store == "small" or (settings.store == "auto" and reason is not None)
    return Storage(scheme, packed, settings.method, layout, kind_of(settings.train, scheme))


def _remark(storage: Storage, settings: Quantize, reason: str | None, ctx: PassContext) -> str:
    """What the user should know of how a weight is kept, and of inputs that stay in floats."""
    bits = storage.scheme.fmt.bits
    if reason is None:
        return "" if storage.packed or bits == 8 else f"{bits} bits take a byte each: store=small packs them"
    if settings.activations != "none":
        return f"activations stay in floats: {reason}"
    if ctx.rates.platform == "cpu":
        return "on a cpu this is smaller, not faster: activations=dynamic is"
    return ""


def _not_balanced(settings: Quantize, balance: str | None) -> str:
    """That a weight is not balanced, though that was asked for."""
    if settings.balance == "none" or balance is not None:
        return ""
    return f"without {settings.balance}, which is for products with one contracted axis and no batch"


def _short_group(storage: Storage, shape: tuple[int, ...]) -> str:
    """That a group size does not divide the axis: the last group is shorter."""
    short = max(padding(shape, storage.scheme)) if storage.scheme.group_sizes else 0
    if not short:
        return ""
    size = storage.scheme.group_sizes[0]
    return f"groups of {size} do not divide the axis: the last has {size - short}"


def _joined(*remarks: str) -> str:
    return "; ".join(filter(None, remarks))


def _in_floats(node: Node, reason: str | None, ctx: PassContext) -> str:
    """That a convolution of codes is no faster here, where the processor makes it in floats."""
    groups, numbers = node.params["feature_group_count"], node.params["dimension_numbers"]
    if reason is not None or ctx.rates.platform != "cpu":
        return ""
    if node.operands[1].ndim > 4 or any(hole != 1 for hole in node.params["lhs_dilation"]):
        return (
            "volumes and images with holes are convolved in float32 on a cpu, no faster: skip leaves it out"
        )
    if groups != 1:
        window = window_of(node)
        fast = is_shifted(node, window) or is_taken_apart(window, channels_of(node, window))
        return "" if fast else "such groups are convolved in float32 on a cpu, no faster: skip leaves it out"
    if has_dot_products():
        return ""
    shape = node.operands[1].shape
    taps = tuple(shape[d] for d in numbers.rhs_spec[2:])
    strides = tuple(node.params["window_strides"])
    if len(taps) != 2 or math.prod(taps) == 1:
        return ""
    channels, outputs = shape[numbers.rhs_spec[1]], shape[numbers.rhs_spec[0]]
    form = convolution_form(channels, outputs, taps, strides, dot_products=False)
    slow = "slower than floats on this processor, which has no dot products of int8: skip leaves it out"
    return slow if form == "floats" else ""


def _dot(use: WeightUse, settings: Quantize, ctx: PassContext) -> Plan | str:
    node, side = use.node, use.side
    dims = node.params["dimension_numbers"]
    contracted, batch = dims[0][side], dims[1][side]
    if not contracted:
        return "an outer product has nothing to save"
    axis = max(contracted, key=lambda i: use.weight.shape[i])
    layout = MatrixLayout(contracted, batch)
    scheme = _scheme(settings, use.weight.ndim, contracted, axis)
    reason = _why_not_codes(scheme, settings)
    storage = _storage(scheme, settings, reason, layout)
    rows = dims[0][1 - side]
    activations = None if reason else _activations(settings, rows)
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
    )
    done = _words(storage, settings, activations) + (f", {balance}" if balance else "")
    short = _short_group(storage, use.weight.shape)
    remark = _joined(_remark(storage, settings, reason, ctx), _not_balanced(settings, balance), short)
    trained = rounding_of(storage, activations, watchers)
    return Plan(dots.product, how, done, tuple(watchers), remark, trained)


def _convolution(use: WeightUse, settings: Quantize, ctx: PassContext) -> Plan | str:
    node = use.node
    if use.side != 1:
        return "the weight is the image of the convolution"
    if node.params["batch_group_count"] != 1:
        return "convolutions with batch groups are the gradients of others"
    numbers, groups = node.params["dimension_numbers"], node.params["feature_group_count"]
    kernel = numbers.rhs_spec
    axis = kernel[1] if settings.group or get_format(settings.weights).block else None
    scheme = _scheme(settings, use.weight.ndim, tuple(kernel[1:]), axis)
    reason = _why_not_codes(scheme, settings)
    if settings.activations != "none" and (scheme.group_sizes or not scheme.symmetric):
        reason = "convolutions take one scale for each output channel, without zero points"
    storage = _storage(scheme, settings, reason, conv_layout(kernel, groups))
    activations = None if reason else _activations(settings, tuple(numbers.lhs_spec[1:]))
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
    done = _words(storage, settings, activations)
    slow = _in_floats(node, reason, ctx)
    short = _short_group(storage, use.weight.shape)
    remark = _joined(_remark(storage, settings, reason, ctx) or slow, _not_balanced(settings, None), short)
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
    scheme = _scheme(settings, use.weight.ndim, (longest,) if of_matrices else others, longest)
    if settings.per == "tensor" and not scheme.group_sizes:
        return "tables have a scale for each row"
    if settings.method == "gptq":
        settings = replace(settings, method="round")
    storage = _storage(scheme, settings, _why_not_codes(scheme, settings))
    names = ("dimension_numbers", "unique_indices", "indices_are_sorted", "mode", "fill_value")
    watchers = watchers_of(storage, None, settings)
    kinds = tuple(watcher.kind for watcher in watchers)
    how = tables.Rows(axis, storage, tuple((name, node.params[name]) for name in names), kinds)
    done = _words(storage, settings, None)
    if not of_matrices:
        done = done.replace("per channel", "per row")
    trained = rounding_of(storage, None, watchers)
    remark = _short_group(storage, use.weight.shape)
    return Plan(tables.rows, how, done, tuple(watchers), remark, trained)


_PLANS: Final = {"dot_general": _dot, "conv_general_dilated": _convolution, "gather": _table}
