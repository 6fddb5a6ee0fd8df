"""What the plans of all operations have in common: schemes, storage, and what the report says."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from lepton_jax.ir.graph import Node
from lepton_jax.numerics.formats import Format, get_format
from lepton_jax.numerics.hessian import MatrixLayout
from lepton_jax.numerics.learned import kind_of
from lepton_jax.numerics.quantize import Scheme, padding
from lepton_jax.passes.lower._convolution.window import window_of
from lepton_jax.passes.lower._integer_convolution.common import channels_of, is_shifted, is_taken_apart
from lepton_jax.passes.quantize._quantize.weights import Storage
from lepton_jax.rewrite import PassContext
from lepton_jax.targets.convolution_forms import convolution_form, has_dot_products

if TYPE_CHECKING:
    from lepton_jax.passes.quantize.quantize import Quantize

_LAYOUT: Final = MatrixLayout()


def scheme_of(settings: Quantize, rank: int, shared: tuple[int, ...], axis: int | None) -> Scheme:
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


def words_of(storage: Storage, settings: Quantize, activations: Scheme | None) -> str:
    scheme = storage.scheme
    share = f"groups of {scheme.group_sizes[0]}" if scheme.group_sizes else f"per {settings.per}"
    words = f"{scheme.fmt.name}, {share}" + ("" if scheme.symmetric else ", affine")
    words += "" if storage.method == "round" else f", {storage.method}"
    words += "" if settings.train == "none" else f", {settings.train}"
    return words if activations is None else f"{words}; activations {activations.fmt}, {settings.activations}"


def activations_of(settings: Quantize, shared: tuple[int, ...]) -> Scheme:
    """The scheme of activations: a scale for each row, whose axes are shared, or one for all."""
    whole = settings.rows == "tensor" or settings.activations == "static"
    return Scheme(_activation_format(settings), shared=None if whole else shared)


def _activation_format(settings: Quantize) -> Format:
    form = get_format(settings.weights)
    default = "int8" if form.kind == "integer" else form.name
    return get_format(settings.activation_format or default)


def why_not_codes(scheme: Scheme, settings: Quantize) -> str | None:
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


def why_not_convolved(scheme: Scheme, ctx: PassContext) -> str | None:
    """Why images are not quantised with such kernels: XLA for GPUs has no float8 convolution to a sum."""
    if ctx.rates.platform == "gpu" and scheme.fmt.kind != "integer":
        return f"a gpu convolves {scheme.fmt} as float32"
    return None


def storage_of(
    scheme: Scheme, settings: Quantize, reason: str | None, layout: MatrixLayout = _LAYOUT
) -> Storage:
    """How a weight is kept: packed if that was asked for, or if its codes are decoded in any case."""
    packed = settings.store == "small" or (settings.store == "auto" and reason is not None)
    return Storage(scheme, packed, settings.method, layout, kind_of(settings.train, scheme))


def remark_of(storage: Storage, settings: Quantize, reason: str | None, ctx: PassContext) -> str:
    """What the user should know of how a weight is kept, and of inputs that stay in floats."""
    bits = storage.scheme.fmt.bits
    if reason is None:
        return "" if storage.packed or bits == 8 else f"{bits} bits take a byte each: store=small packs them"
    if settings.activations != "none":
        return f"activations stay in floats: {reason}"
    if ctx.rates.platform == "cpu":
        return "on a cpu this is smaller, not faster: activations=dynamic is"
    return ""


def not_balanced(settings: Quantize, balance: str | None) -> str:
    """That a weight is not balanced, though that was asked for."""
    if settings.balance == "none" or balance is not None:
        return ""
    return f"without {settings.balance}, which is for products with one contracted axis and no batch"


def short_group(storage: Storage, shape: tuple[int, ...]) -> str:
    """That a group size does not divide the axis: the last group is shorter."""
    short = max(padding(shape, storage.scheme)) if storage.scheme.group_sizes else 0
    if not short:
        return ""
    size = storage.scheme.group_sizes[0]
    return f"groups of {size} do not divide the axis: the last has {size - short}"


def joined(*remarks: str) -> str:
    return "; ".join(filter(None, remarks))


def in_floats(node: Node, reason: str | None, ctx: PassContext) -> str:
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
