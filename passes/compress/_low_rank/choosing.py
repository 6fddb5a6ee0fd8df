"""The forms that a use of a weight may take, and the rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from jax import lax

from lepton_jax.ir.binding import parameters_of
from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.graph import Node, Value
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.numerics._matrix import MatrixLayout
from lepton_jax.passes._weights.uses import GEOMETRY, WeightUse
from lepton_jax.passes.compress._low_rank.form import Form, apply_factors
from lepton_jax.passes.compress._low_rank.kernels import Channel, Kernel, Spatial, Tucker
from lepton_jax.passes.compress._low_rank.pairs import Product, Rows
from lepton_jax.rewrite import PassContext, rewrite
from lepton_jax.rewrite.profit import is_disregarded
from lepton_jax.rewrite.replacement import traced

if TYPE_CHECKING:
    from lepton_jax.passes.compress.low_rank import LowRank

KERNELS: Final = {"spatial": Spatial, "channel": Channel, "tucker": Tucker}
"""Forms of convolutions; where nothing is known of the weights, the first that there is."""

NO_CHEAPER: Final = "factors of such a rank cost as much as the weight itself"

NO_FASTER: Final = "its factors are no faster here, by the target's cost model: goal=smaller takes them"

REASONS: Final = (NO_CHEAPER, NO_FASTER, "the budget leaves it whole: others lose less")
"""Why a weight stays as it is, where that was decided before the program was written."""


class Choice(NamedTuple):
    """What a use of a weight becomes.

    Attributes:
        form: how it is written.
        rank: of the factors; with adapters, theirs included.
    """

    form: Form
    rank: int


def forms_of(use: WeightUse, settings: LowRank) -> list[Form] | str:
    """The forms that a use can take, or why there are none."""
    if use.node.params.get("out_sharding") is not None:
        return "its sharding is prescribed"
    return {"dot_general": _product, "conv_general_dilated": _kernels, "gather": _rows}[use.node.op](
        use, settings
    )


def _product(use: WeightUse, settings: LowRank) -> list[Form] | str:
    node, side = use.node, use.side
    dims = node.params["dimension_numbers"]
    (summed, batch) = dims
    if not summed[side]:
        return "an outer product has nothing to save"
    layout = MatrixLayout(tuple(summed[side]), tuple(batch[side]))
    if min(layout.shape(use.weight.shape)[1:]) < 2:
        return "it has one row or column"
    precision, wide = node.params["precision"], node.params["preferred_element_type"]
    return [Product(use.weight.shape, layout, side, dims, precision, wide)]


def _kernels(use: WeightUse, settings: LowRank) -> list[Form] | str:
    node, kernel = use.node, use.weight.shape
    if use.side != 1:
        return "the weight is the image of the convolution"
    if node.params["batch_group_count"] != 1 or node.params["feature_group_count"] != 1:
        return "convolutions with groups have kernels of low rank already"
    numbers = node.params["dimension_numbers"]
    image, result = use.other.shape, node.results[0].shape
    positions = tuple(image[i] for i in numbers.lhs_spec[2:]), tuple(result[i] for i in numbers.out_spec[2:])
    known = tuple((name, node.params[name]) for name in GEOMETRY)
    rest = (known, positions, node.params["precision"], node.params["preferred_element_type"])
    space = [kernel[i] for i in numbers.rhs_spec[2:]]
    names = [settings.form] if settings.form != "auto" else [*KERNELS]
    if len(space) < 2 or math.prod(space[:1]) == 1 or math.prod(space[1:]) == 1:
        names = ["channel" if name == "spatial" else name for name in names]
    if math.prod(space) == 1 or settings.train == "adapters":
        names = ["channel" if name == "tucker" else name for name in names]
    found: list[Kernel] = [KERNELS[name](kernel, *rest) for name in dict.fromkeys(names)]
    return [form for form in found if form.most > 1] or "it has one channel"


def _rows(use: WeightUse, settings: LowRank) -> list[Form] | str:
    node, table = use.node, use.weight
    numbers, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
    fill, mode = node.params["fill_value"], node.params["mode"]
    if len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        return "it does not take whole rows"
    (axis,) = numbers.start_index_map
    others = tuple(i for i in range(table.ndim) if i != axis)
    if tuple(numbers.collapsed_slice_dims) != (axis,) or [sizes[i] for i in others] != [
        table.shape[i] for i in others
    ]:
        return "it does not take whole rows"
    if fill is not None and not np.isnan(fill) and fill != 0:
        return f"rows out of bounds are filled with {fill}"
    if mode == lax.GatherScatterMode.FILL_OR_DROP and fill is None:
        fill = float("nan")
    return [Rows(table.shape, MatrixLayout((axis,)), tuple(numbers.offset_dims), mode, fill)]


def static_rank(form: Form, settings: LowRank) -> int | None:
    """The rank by the shapes alone: with `rank` and `ratio`; 0 where none is cheap enough; None otherwise."""
    if settings.rank:
        wanted = settings.rank
    elif settings.ratio:
        wanted = _rank_within(form, settings.count, settings.ratio)
    else:
        return None
    return rounded(min(wanted, form.most), form, settings)


def rounded(rank: int, form: Form, settings: LowRank) -> int:
    """A rank as a multiple of what is asked for, and with adapters; 0 where it costs what the weight does."""
    step = settings.multiple
    rank = min(max(round(rank / step), 1) * step, form.most) if rank else 0
    extra = settings.adapters if settings.train == "adapters" else 0
    rank = min(rank + extra, form.most) if rank else 0
    if rank and settings.residual != "none":
        return rank
    cheaper = form.costs(settings.count)[rank] < form.whole(settings.count)
    return rank if rank and cheaper else 0


def _rank_within(form: Form, count: str, ratio: float) -> int:
    """The highest rank that costs this share at most, or the least there is."""
    fits = np.flatnonzero(form.costs(count) <= ratio * form.whole(count))
    return max(int(fits[-1]), 1)


def pays(choice: Choice, node: Node, other: Value, ctx: PassContext, goal: str) -> bool:
    """Whether factors are faster than the operation, as the target's cost model has it."""
    return (
        goal == "smaller"
        or is_disregarded()
        or seconds(choice, node, other, ctx) < ctx.seconds(node_cost(node))
    )


def seconds(choice: Choice, node: Node, other: Value, ctx: PassContext) -> float:
    """The estimated time of an operation on factors, without what is made of these alone."""
    import jax

    form, rank = choice
    aval = jax.ShapeDtypeStruct(form.shape, node.operands[0].dtype)
    shapes = jax.eval_shape(lambda weight: form.factors(weight, None, rank), aval)
    values = [Value(jax.typeof(shape)) for shape in shapes]
    fresh = from_jaxpr(traced(rewrite(apply_factors, other, *values, form=form), node), "thin")
    early = parameters_of(fresh, range(1, 1 + len(values)))
    return sum(ctx.seconds(node_cost(each)) for each in fresh if each.results[0] not in early)


def cheapest(choices: Sequence[tuple[int, int, float, float]]) -> tuple[int, int]:
    """Of (form, rank, cost, error) the one with the least cost, and of equal ones the least error."""
    form, rank, _, _ = min(choices, key=lambda each: (each[2], each[3]))
    return form, rank
