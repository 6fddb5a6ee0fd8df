"""Bias correction: what rounding a weight takes from the mean of a result is added to it again.

Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction" (2019), section 4.2,
with the mean input from calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import is_stored, parameters_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes._weights.lifting import top
from lepton_jax.passes._weights.moments import MeanSeen
from lepton_jax.passes._weights.uses import GEOMETRY, WeightUse
from lepton_jax.passes.quantize._quantize import convolutions, dots
from lepton_jax.passes.simplify._absorb.after import compacted
from lepton_jax.passes.simplify._absorb.known import compact_shape
from lepton_jax.rewrite import PassContext, rewrite
from lepton_jax.rewrite.replacement import between, write_before

_RULE: Final = "corrected-bias"


def mean_of(use: WeightUse) -> MeanSeen | None:
    """What calibration has to see to correct the mean of a result; None where it is not corrected."""
    params = use.node.params
    if use.node.op == "dot_general":
        contracted, batch = params["dimension_numbers"]
        return MeanSeen((*contracted[1 - use.side], *batch[1 - use.side]))
    if use.node.op != "conv_general_dilated" or any(d != 1 for d in params["lhs_dilation"]):
        return None
    return MeanSeen((params["dimension_numbers"].lhs_spec[1],))


def correct(
    use: WeightUse, fun: Any, how: Any, values: Sequence[Value], mean: Value, ctx: PassContext
) -> None:
    """Add to a result what its mean loses: into the bias that follows, or if there is none, as a bias.

    Args:
        fun: what will take the operation's place.
        how: its static argument.
        values: what it reads besides the operation's operands.
        mean: of the input.
    """
    node = use.node
    following = _bias_after(node, ctx)
    if not ctx.fire(_RULE, node):
        return
    shift = lost(use, fun, how, values, mean)
    if following is not None:
        user, position = following
        bias = user.operands[position]
        shape = compact_shape(bias, user.result.ndim)
        (both,) = write_before(rewrite(_both, bias, shift, shape=shape), user, _RULE)
        user.set_operand(position, both)
        return
    after = node.next
    assert after is not None
    uses = list(node.result.uses)
    (corrected,) = write_before(rewrite(_both_whole, node.result, shift), after, _RULE)
    for user, position in uses:
        user.set_operand(position, corrected)


def lost(use: WeightUse, fun: Any, how: Any, values: Sequence[Value], mean: Value) -> Value:
    """What rounding a weight takes from the mean of its result; its size is one along all other axes.

    Args: see `correct`.
    """
    node = use.node
    before = node.prev
    made = rewrite(
        _lost, mean, use.weight, *values, side=use.side, instead=fun, how=how, params=_params(node)
    )
    (shift,) = write_before(made, node, _RULE)
    for fresh in between(before, node):
        if is_stored(fresh):  # this is computed once, and only its result is kept
            fresh.result.replace_uses(fresh.operands[0])
    return shift


def _params(node: Node) -> tuple[tuple[str, Any], ...]:
    return tuple(node.params.items())


def _bias_after(node: Node, ctx: PassContext) -> tuple[Node, int] | None:
    """The addition of parameters that alone reads a result, and where they stand in it."""
    if len(node.result.uses) != 1:
        return None
    ((user, position),) = node.result.uses
    if user.op != "add" or user.result.shape != node.result.shape:
        return None
    assert node.graph is not None
    if not parameters_of(top(node.graph), ctx.params).get(user.operands[1 - position]):
        return None
    return user, 1 - position


def _lost(
    mean: jax.Array,
    weight: jax.Array,
    *values: jax.Array,
    side: int,
    instead: Any,
    how: Any,
    params: tuple[tuple[str, Any], ...],
) -> jax.Array:
    """The mean of the result before rounding the weight, less that after it; size one along other axes."""
    x, named = mean.astype(weight.dtype), dict(params)
    if isinstance(how, convolutions.Filter):
        x, named = _constant_image(x, weight, named)
        how = replace(how, params=tuple((name, named[name]) for name, _ in how.params))
        exact: Any = lax.conv_general_dilated(x, weight, **_known(named))
    else:
        operands = (weight, x) if side == 0 else (x, weight)
        highest = lax.Precision.HIGHEST
        exact = lax.dot_general(*operands, named["dimension_numbers"], precision=highest)
    how = replace(how, activations=None)
    if isinstance(how, dots.Product):
        how = replace(how, precision=lax.Precision.HIGHEST, block=0, digits=None)
    operands = (weight, x) if side == 0 else (x, weight)
    lost: jax.Array = (exact - instead(*operands, *values, how=how)).astype(how.result)
    return lost


def _known(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name in _CONVOLUTION}


_CONVOLUTION: Final = (*GEOMETRY, "precision", "preferred_element_type")


def _constant_image(
    mean: jax.Array, kernel: jax.Array, params: dict[str, Any]
) -> tuple[jax.Array, dict[str, Any]]:
    """An image of means that the kernel fits into once, and the parameters of that convolution."""
    numbers = params["dimension_numbers"]
    shape = list(mean.shape)
    for at, axis, step in zip(
        numbers.lhs_spec[2:], numbers.rhs_spec[2:], params["rhs_dilation"], strict=True
    ):
        shape[at] = (kernel.shape[axis] - 1) * step + 1
    ones = (1,) * (len(shape) - 2)
    inside = {**params, "window_strides": ones, "padding": ((0, 0),) * len(ones)}
    return jnp.broadcast_to(mean, shape), inside


def _both(bias: jax.Array, shift: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
    short = compacted(bias, shape) if bias.ndim else bias
    total: jax.Array = short + shift
    whole = bias.shape if bias.ndim and bias.shape != shape else total.shape
    return jnp.broadcast_to(total, whole) if bias.ndim else total


def _both_whole(result: jax.Array, shift: jax.Array) -> jax.Array:
    return result + shift
