"""How the weight of a use is cut into what shares a palette."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lepton_jax.ir.graph import Value
from lepton_jax.numerics.hessian import MatrixLayout, conv_layout
from lepton_jax.numerics.palettes import PaletteScheme
from lepton_jax.passes._weights.moments import HessianSeen, hessian_seen
from lepton_jax.passes._weights.uses import WeightUse, indexed_axis

if TYPE_CHECKING:
    from lepton_jax.passes.compress.palettize import Palettize

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A use's weight, and what it is a transpose of.

    Attributes:
        base: the array that has a palette: the weight, or what it is a transpose of, so that a tied weight is
            kept once.
        turned: the permutation that makes the weight of it; None: it is the weight.
        scheme: of the base.
        rows: the base's axis that a gather takes rows of; None where it is read whole.
        hessian: what sees the inputs, and which axes of the base they are multiplied with; None: nothing.
    """

    base: Value
    turned: Ints | None
    scheme: PaletteScheme
    rows: int | None
    hessian: tuple[HessianSeen, MatrixLayout] | None


def layout_of(use: WeightUse, settings: Palettize) -> Layout | str:
    """How a use's weight is cut, or why it cannot be."""
    base, turned = _base(use.weight)
    order = tuple(range(base.ndim)) if turned is None else turned
    summed, channels = _axes(use)
    rows = indexed_axis(use.node) if use.node.op == "gather" else None
    axis = None
    if settings.per == "channel":
        if not channels:
            return "it has no axis of channels"
        axis = order[channels[0]]
    length = settings.vector
    first = [order[i] for i in (*summed, *channels)]
    along = first + [i for i in range(base.ndim) if i not in first]
    fitting = [i for i in along if i != axis and i not in _taken(rows) and base.shape[i] % length == 0]
    if length > 1 and not fitting:
        return f"no axis of {list(base.shape)} that may be cut is a multiple of vector={length}"
    scheme = PaletteScheme(
        settings.bits,
        axis=axis,
        group=settings.group,
        vector=length,
        vector_axis=fitting[0] if length > 1 else 0,
        zeros=settings.zeros == "keep",
        method=settings.method,
    )
    seen = hessian_seen(use) if settings.weigh == "hessian" else None
    return Layout(base, turned, scheme, rows, None if seen is None else (seen, _matrix(use, order)))


def _taken(rows: int | None) -> Ints:
    return () if rows is None else (rows,)


def _base(weight: Value) -> tuple[Value, Ints | None]:
    node = weight.node
    if node is None or node.op != "transpose" or node.operands[0].is_const:
        return weight, None
    return node.operands[0], tuple(node.params["permutation"])


def _axes(use: WeightUse) -> tuple[Sequence[int], Sequence[int]]:
    """The axes of a weight that are summed over, and those of its channels, the most important first."""
    node, rank = use.node, use.weight.ndim
    if node.op == "conv_general_dilated":
        spec = node.params["dimension_numbers"].rhs_spec
        return spec[1:], spec[:1]
    if node.op == "gather":
        axis = indexed_axis(node)
        return [i for i in range(rank) if i != axis], [] if axis is None else [axis]
    contracted, batch = node.params["dimension_numbers"]
    summed = contracted[use.side]
    free = [i for i in range(rank) if i not in summed and i not in batch[use.side]]
    return summed, free


def _matrix(use: WeightUse, order: Ints) -> MatrixLayout:
    """The axes of the base that the inputs are multiplied with."""
    node = use.node
    if node.op == "conv_general_dilated":
        spec = node.params["dimension_numbers"].rhs_spec
        found = conv_layout(spec, node.params["feature_group_count"])
        return MatrixLayout(tuple(order[i] for i in found.axes), groups=found.groups)
    contracted, batch = node.params["dimension_numbers"]
    return MatrixLayout(
        tuple(order[i] for i in contracted[use.side]), tuple(order[i] for i in batch[use.side])
    )
