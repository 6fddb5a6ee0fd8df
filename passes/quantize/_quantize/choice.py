"""How one use of a weight is quantised, or why it is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lepton_jax.ir.graph import Value
from lepton_jax.numerics.formats import Format, get_format
from lepton_jax.numerics.hessian import MatrixLayout, conv_layout
from lepton_jax.numerics.observers import get_observer
from lepton_jax.numerics.quantize import Scheme
from lepton_jax.passes.quantize._quantize import convolutions, dots, tables
from lepton_jax.passes.quantize._quantize.observing import ChannelsSeen, HessianSeen, RangeSeen, Watcher
from lepton_jax.passes.quantize._quantize.sites import WeightUse
from lepton_jax.passes.quantize._quantize.weights import Storage
from lepton_jax.rewrite import PassContext

if TYPE_CHECKING:
    from lepton_jax.passes.quantize.quantize import Quantize

_LAYOUT: Final = MatrixLayout()


@dataclass(frozen=True)
class Plan:
    """What to put in place of an operation.

    Attributes:
        fun: the function of the operands, of `others`, and of what calibration saw.
        how: its static argument.
        done: in words.
        others: more values that it reads.
        watchers: what calibration has to see.
        remark: what else the user should know.
    """

    fun: Any
    how: Any
    done: str
    others: tuple[Value, ...] = ()
    watchers: tuple[Watcher, ...] = ()
    remark: str = ""


def plan(use: WeightUse, uses: Sequence[WeightUse], settings: Quantize, ctx: PassContext) -> Plan | str:
    """How a use of a weight is quantised, or why it cannot be.

    Args:
        uses: all that are quantised the same way.
    """
    return _PLANS[use.node.op](use, uses, settings, ctx)


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
    return Storage(scheme, packed, settings.method, layout)


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


def _dot(use: WeightUse, uses: Sequence[WeightUse], settings: Quantize, ctx: PassContext) -> Plan | str:
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
    watchers: list[Watcher] = []
    if activations is not None and settings.activations == "static":
        watchers.append(RangeSeen(get_observer(settings.observer), activations))
    if balance is not None:
        watchers.append(ChannelsSeen(rows[0]))
    if settings.method == "gptq":
        sizes = tuple(use.weight.shape[i] for i in batch)
        size = math.prod(use.weight.shape[i] for i in contracted)
        watchers.append(HessianSeen(rows, dims[1][1 - side], size, sizes))
    group = _same_input(use, uses) if balance == "smoothquant" else [use]
    partners = [other for other in group if other is not use]
    how = dots.Product(
        side=side,
        dims=dims,
        storage=storage,
        activations=activations,
        precision=node.params["precision"],
        result=node.results[0].dtype,
        balance=balance,
        kinds=tuple(watcher.kind for watcher in watchers),
        place=group.index(use),
        partners=tuple(other.node.params["dimension_numbers"][0][other.side][0] for other in partners),
    )
    done = _words(storage, settings, activations) + (f", {balance}" if balance else "")
    remark = _remark(storage, settings, reason, ctx)
    others = tuple(other.weight for other in partners)
    return Plan(dots.product, how, done, others, tuple(watchers), remark)


def _same_input(use: WeightUse, uses: Sequence[WeightUse]) -> list[WeightUse]:
    """The products of one input with weights, which need the same balance; in program order."""
    return [
        other
        for other in uses
        if other.other is use.other
        and other.node.op == "dot_general"
        and other.node.params["dimension_numbers"][0][1 - other.side]
        == use.node.params["dimension_numbers"][0][1 - use.side]
        and not other.node.params["dimension_numbers"][1][other.side]
    ]


def _convolution(
    use: WeightUse, uses: Sequence[WeightUse], settings: Quantize, ctx: PassContext
) -> Plan | str:
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
    params = tuple((name, node.params[name]) for name in _CONVOLUTION)
    watchers: list[Watcher] = []
    if activations is not None and settings.activations == "static":
        watchers.append(RangeSeen(get_observer(settings.observer), activations))
    if settings.method == "gptq":
        watchers.append(_conv_hessian(use, params))
    how = convolutions.Filter(
        params=params,
        storage=storage,
        activations=activations,
        precision=node.params["precision"],
        result=node.results[0].dtype,
        kinds=tuple(watcher.kind for watcher in watchers),
    )
    done = _words(storage, settings, activations)
    remark = _remark(storage, settings, reason, ctx)
    return Plan(convolutions.convolution, how, done, (), tuple(watchers), remark)


_CONVOLUTION: Final = (
    "window_strides",
    "padding",
    "lhs_dilation",
    "rhs_dilation",
    "dimension_numbers",
    "feature_group_count",
    "batch_group_count",
)


def _conv_hessian(use: WeightUse, params: tuple[tuple[str, Any], ...]) -> HessianSeen:
    known = dict(params)
    groups = known.pop("feature_group_count")
    del known["batch_group_count"]
    shape = use.weight.shape
    size = math.prod(shape[i] for i in known["dimension_numbers"].rhs_spec[1:])
    batches = (groups,) if groups > 1 else ()
    return HessianSeen((), (), size, batches, (shape, tuple({**known, "groups": groups}.items())))


def _table(use: WeightUse, uses: Sequence[WeightUse], settings: Quantize, ctx: PassContext) -> Plan | str:
    node = use.node
    axis = tables.indexed_axis(node)
    if axis is None:
        return "it does not take whole rows"
    fill = node.params["fill_value"]
    if fill is not None and not np.isnan(fill) and fill != 0:
        return f"rows out of bounds are filled with {fill}"
    if not settings.symmetric:
        return "tables have no zero points"
    others = tuple(i for i in range(use.weight.ndim) if i != axis)
    last = max(others, key=lambda i: use.weight.shape[i])
    scheme = _scheme(settings, use.weight.ndim, others, last)
    if settings.per == "tensor" and not scheme.group_sizes:
        return "tables have a scale for each row"
    if settings.method == "gptq":
        settings = replace(settings, method="round")
    storage = _storage(scheme, settings, _why_not_codes(scheme, settings))
    names = ("dimension_numbers", "unique_indices", "indices_are_sorted", "mode", "fill_value")
    how = tables.Rows(axis, storage, tuple((name, node.params[name]) for name in names))
    return Plan(tables.rows, how, _words(storage, settings, None).replace("per channel", "per row"))


_PLANS: Final = {"dot_general": _dot, "conv_general_dilated": _convolution, "gather": _table}
