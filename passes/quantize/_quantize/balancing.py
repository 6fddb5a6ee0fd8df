"""SmoothQuant and AWQ: input channels divided by a scale, and the weights that read them multiplied by it.

Xiao et al., "SmoothQuant" (2023), and Lin et al., "AWQ" (2023). The division is taken into what makes the
input where that is made of parameters: the gain of a norm, or the product before. Then nothing of it is
left at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import jax
import jax.numpy as jnp

from lepton_jax.ir.binding import store
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.numerics.smoothquant import scaled
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.passes.fuse._attention.order import sort
from lepton_jax.passes.quantize._quantize import dots
from lepton_jax.passes.quantize._quantize.observing import by_kind
from lepton_jax.passes.quantize._quantize.weights import balance
from lepton_jax.passes.simplify._absorb.known import Known
from lepton_jax.passes.simplify._absorb.upward import scale_into_makers
from lepton_jax.rewrite import PassContext, rewrite
from lepton_jax.rewrite.replacement import write_before

_RULE: Final = "balanced-input"


@dataclass(frozen=True)
class Balanced:
    """A use of a weight that is to be balanced.

    Attributes:
        use: where.
        how: how it is quantised.
        seen: what calibration saw, by kind.
        mean: of the input, where the bias is corrected.
    """

    use: WeightUse
    how: dots.Product
    seen: Mapping[str, tuple[Value, ...]]
    mean: Value | None = None


Result = tuple[dots.Product, tuple[Value, ...], Value | None]
"""How a balanced weight is quantised, what calibration would have seen, and the mean input."""


def balance_inputs(every: Sequence[Balanced], graph: Graph, ctx: PassContext) -> dict[str, Result]:
    """Divide inputs and multiply weights, for all uses of weights that are balanced.

    Products of one input share its scale.

    Returns:
        By the name of each use: how it is quantised from now on, and what calibration would have seen.
    """
    groups: dict[Any, list[Balanced]] = {}
    for each in every:
        groups.setdefault(_key(each), []).append(each)
    found = {each.use.name: _unbalanced(each) for each in every}
    allowed = [group for group in groups.values() if ctx.fire(_RULE, group[0].use.node)]
    scales = [(_scale(group), group) for group in allowed]
    known = Known.of(graph, ctx)
    for (scale, inverse), group in scales:
        first = group[0]
        node, late = first.use.node, first.use.other
        readers = {(each.use.node, 1 - each.use.side) for each in group}
        reason: str | None = "it is also read elsewhere"
        known.early[inverse] = frozenset()
        if set(late.uses) <= readers:
            reason = scale_into_makers(late, inverse, first.how.partner, known, _RULE)
        if reason is not None:
            ctx.miss(_RULE, node, f"the division of its input stays: {reason}")
            (divided,) = write_before(rewrite(_times, late, inverse, axis=first.how.partner), node, _RULE)
            for each in group:
                each.use.node.set_operand(1 - each.use.side, divided)
        for each in group:
            found[each.use.name] = _one(each, scale)
            known.early[each.use.weight] = each.use.params
    for inner in dict.fromkeys(group[0].use.node.graph for group in allowed):
        if inner is not None:  # scales, written at the first product, are read by what makes its input
            sort(inner)
    return found


def _key(each: Balanced) -> Any:
    """Products with one key share their scale: SmoothQuant's must, AWQ's can where weights are alike."""
    how, node = each.how, each.use.node
    if how.balance == "awq" and each.use.weight.ndim != 2:
        return node
    alike = (how.channel, how.storage.scheme, how.storage.layout) if how.balance == "awq" else None
    return each.use.other, how.partner, how.balance, alike


def _scale(group: Sequence[Balanced]) -> tuple[Value, Value]:
    """The scale of an input and its inverse, written in front of the first product."""
    first = group[0]
    weights = [each.use.weight for each in group]
    made = rewrite(
        _found,
        *first.seen["channels"],
        *weights,
        axes=tuple(each.how.channel for each in group),
        balance_by=first.how.balance,
        how=first.how,
    )
    scale, inverse = write_before(made, first.use.node, _RULE)
    return scale, inverse


def _found(
    greatest: jax.Array,
    magnitude: jax.Array,
    square: jax.Array,
    *weights: jax.Array,
    axes: tuple[int, ...],
    balance_by: str,
    how: dots.Product,
) -> list[jax.Array]:
    channels = (greatest, magnitude, square)
    if balance_by == "awq" and len(weights) > 1:
        weights, axes = (jnp.concatenate(weights, 1 - axes[0]),), axes[:1]
    scale = balance(weights, axes, channels, balance_by, how.storage.scheme, how.storage.layout)
    return [scale, 1 / scale]


def _one(each: Balanced, scale: Value) -> Result:
    """Multiply one weight, and let what calibration saw be that of the divided input."""
    use, how = each.use, each.how
    (weight,) = write_before(rewrite(_weighted, use.weight, scale, axis=how.channel), use.node, _RULE)
    use.node.set_operand(use.side, weight)
    how, given, mean = _unbalanced(each)
    values: list[Value] = []
    for kind, own in by_kind(given, how.kinds).items():
        if kind == "hessian":
            values += write_before(rewrite(_hessian, own[0], scale), use.node, _RULE)
        elif kind == "range":
            values += write_before(rewrite(_range, each.seen["channels"][0], scale), use.node, _RULE)
        else:
            values += own
    if mean is not None:
        (mean,) = write_before(rewrite(_mean, mean, scale, axis=how.partner), use.node, _RULE)
    return how, tuple(values), mean


def _unbalanced(each: Balanced) -> Result:
    kinds = tuple(kind for kind in each.how.kinds if kind != "channels")
    how = replace(each.how, balance=None, kinds=kinds)
    return how, tuple(value for kind in kinds for value in each.seen[kind]), each.mean


def _times(x: jax.Array, scale: jax.Array, *, axis: int) -> jax.Array:
    return scaled(x, store(scale), axis)


def _weighted(weight: jax.Array, scale: jax.Array, *, axis: int) -> jax.Array:
    return scaled(weight, scale, axis)


def _hessian(matrix: jax.Array, scale: jax.Array) -> jax.Array:
    return matrix / (scale[:, None] * scale)


def _range(greatest: jax.Array, scale: jax.Array) -> list[jax.Array]:
    high = jnp.max(greatest / scale)
    return [-high, high]


def _mean(mean: jax.Array, scale: jax.Array, *, axis: int) -> jax.Array:
    return scaled(mean, scale, axis, inverse=True)
