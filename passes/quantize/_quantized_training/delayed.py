"""Products on codes whose scales are those of the steps before: delayed scaling.

A product has three scales: of its operands, and of the gradient of its result. Each is made of the largest
magnitudes of the steps before, so that numbers can be rounded where they are made, without waiting for their
maximum. The state is an operand, and its "gradient" is the state of the next step: so it goes wherever
gradients go, through loops and over devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir._jax import varying_axes
from lepton_jax.numerics.formats import get_format
from lepton_jax.numerics.quantize import Scheme, scale_of_range
from lepton_jax.passes.quantize._quantized_training.products import (
    Dims,
    Formats,
    Rounding,
    slope_dims,
    swapped,
    total_of,
)

KIND: Final = "delayed-scaling"
"""What the state of a product is called among what passes are handed."""

STARTING: Final = "delayed-scaling-start"
"""The same, where the numbers at hand make the scales of this step too."""

OPERANDS: Final = ("gradient", "left", "right")
"""What a product has a scale of each of, in the order in which JAX flattens a dictionary."""

_LEAST: Final = 2.0**-126


class Scaling(NamedTuple):
    """The scale of an operand.

    Attributes:
        scale: what its codes are multiplied by, f32[]; zero: not known yet.
        history: the largest magnitudes of the steps before, the latest first, f32[n]; zero: nothing seen.
    """

    scale: jax.Array
    history: jax.Array


@dataclass(frozen=True)
class Delay:
    """How scales follow the numbers.

    Attributes:
        formats: of the codes.
        history: of how many steps a scale is made.
        margin: so many powers of two are left free above the largest magnitude.
        axes: mapped axes over which magnitudes are compared.
        dtypes: of the operands, in which their gradients are.
        starting: the scales of this step are of the numbers at hand, since none are known.
    """

    formats: Formats
    history: int
    margin: int
    axes: tuple[str, ...] = ()
    dtypes: tuple[Any, Any] = (jnp.float32, jnp.float32)
    starting: bool = False


@dataclass(frozen=True)
class Beginning:
    """The state of a product before the first step.

    Attributes:
        lengths: of the loops that it stands in, outermost first.
        history: of how many steps a scale is made.
    """

    lengths: tuple[int, ...]
    history: int

    def state(self) -> dict[str, dict[str, jax.Array]]:
        """Scales of 1, and empty histories."""
        ones = jnp.ones(self.lengths, jnp.float32)
        empty = jnp.zeros((*self.lengths, self.history), jnp.float32)
        return {name: {"history": empty, "scale": ones} for name in OPERANDS}


def delayed_product(
    left: jax.Array, right: jax.Array, *state: jax.Array, dims: Dims, how: Delay, result: Any
) -> jax.Array:
    """`lax.dot_general` on codes whose scales are known before. Reverse mode only.

    Args:
        left: floats.
        right: floats.
        state: history and scale of each of `OPERANDS`, in order.
        dims: the dimension numbers.
        how: the rest.
        result: the dtype of the result.
    """
    of_slope, of_left, of_right = (Scaling(state[i + 1], state[i]) for i in (0, 2, 4))
    found: jax.Array = _product(dims, how, left, right, (of_left, of_right, of_slope))
    return found.astype(result)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(
    dims: Dims, how: Delay, left: jax.Array, right: jax.Array, state: tuple[Scaling, ...]
) -> jax.Array:
    return _forward(dims, how, left, right, state)[0]


def _forward(
    dims: Dims, how: Delay, left: jax.Array, right: jax.Array, state: tuple[Scaling, ...]
) -> tuple[jax.Array, Any]:
    of_left, of_right, of_slope = state
    a, by_a = _codes(left, of_left, how.formats.left, how)
    b, by_b = _codes(right, of_right, how.formats.right, how)
    following = (_next(left, of_left, how.formats.left, how), _next(right, of_right, how.formats.right, how))
    codes_serve = get_format(how.formats.left.form).kind == get_format(how.formats.gradient.form).kind
    kept = ((a, by_a), (b, by_b)) if codes_serve else ((left, by_a), (right, by_b))
    return total_of(a, b, dims) * (by_a * by_b), (kept, following, of_slope)


def _backward(dims: Dims, how: Delay, residuals: Any, slope: jax.Array) -> Any:
    ((left, by_left), (right, by_right)), following, of_slope = residuals
    own = how.formats.gradient
    codes, scale = _codes(slope, of_slope, own, how)
    b, by_b = _again(right, by_right, how.formats.right, own)
    pairs, order = slope_dims(left.ndim, right.ndim, dims, is_left=True)
    to_left = total_of(codes, b, pairs) * (scale * by_b)
    a, by_a = _again(left, by_left, how.formats.left, own)
    others, other_order = slope_dims(right.ndim, left.ndim, swapped(dims), is_left=False)
    to_right = total_of(codes, a, others) * (scale * by_a)
    return (
        lax.transpose(to_left, order).astype(how.dtypes[0]),
        lax.transpose(to_right, other_order).astype(how.dtypes[1]),
        (*following, _next(slope, of_slope, own, how)),
    )


_product.defvjp(_forward, _backward)


def _codes(x: jax.Array, state: Scaling, rounding: Rounding, how: Delay) -> tuple[jax.Array, jax.Array]:
    """Codes under the scale of the steps before, and that scale."""
    if how.starting:
        most = _largest(x, state, how)
        scale, _ = scale_of_range(-most, most, Scheme(rounding.form))
    else:
        scale = jnp.where(state.scale > 0, state.scale, 1.0)
    return rounding.codes(x, scale, Scheme(rounding.form)), scale


def _again(x: jax.Array, scale: jax.Array, was: Rounding, own: Rounding) -> tuple[jax.Array, jax.Array]:
    """Codes of an operand for products of the backward pass, in a format that goes with the gradient's."""
    now = was.in_format_with(own)
    if now == was:
        return x, scale
    scale = scale * (Scheme(was.form).span / Scheme(now.form).span)
    return now.codes(x, scale, Scheme(now.form)), scale


def _next(x: jax.Array, state: Scaling, rounding: Rounding, how: Delay) -> Scaling:
    """The scale of the next step: of the largest magnitude of this one and those before.

    Micikevicius et al. 2022 and NVIDIA's Transformer Engine: what is not finite does not count, and where
    nothing was seen the scale stays as it was.
    """
    history = jnp.concatenate([_largest(x, state, how)[None], state.history[:-1]])
    largest = jnp.max(history)
    scale, _ = scale_of_range(-largest, largest, Scheme(rounding.form))
    before = jnp.where(state.scale > 0, state.scale, 1.0)
    return Scaling(jnp.where(largest >= _LEAST, scale * 2.0**how.margin, before), history)


def _largest(x: jax.Array, state: Scaling, how: Delay) -> jax.Array:
    """The largest magnitude, on all devices that share the state; 0 where it is not finite."""
    most = jnp.max(jnp.abs(x), initial=0.0).astype(jnp.float32)
    axes = {*how.axes, *(varying_axes(x) - varying_axes(state.history))}
    if axes:
        most = lax.pmax(most, tuple(sorted(axes)))
    return jnp.where(jnp.isfinite(most), most, 0.0)
