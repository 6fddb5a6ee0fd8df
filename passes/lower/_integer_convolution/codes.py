"""What stands between integer convolutions on a CPU: codes in memory, and maxima over windows of integers."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.quantize._requantize.encodings import encoded, encoding_of, window_of_maximum
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_MOST_PARTS: Final = 16


@node_rule("convert_element_type", backends=("cpu",))
def codes_once(node: Node, ctx: PassContext) -> Outcome:
    """codes that several operations read → optimization_barrier(codes)

    XLA otherwise computes them anew in every loop that reads them, with all that comes before them.
    """
    if node.result.dtype != np.int8 or len(node.result.users()) < 2:
        return None
    found = encoding_of(node)
    if found is None:
        return None
    return rewrite(once, found.x, found.ratio, low=found.low, high=found.high)


def once(x: jax.Array, ratio: jax.Array, *, low: float, high: float) -> jax.Array:
    """Codes of an array, in memory."""
    codes: jax.Array = lax.optimization_barrier(encoded(x, ratio, low=low, high=high))
    return codes


@node_rule("reduce_window_max", backends=("cpu",))
def maximum_of_shifts(node: Node, ctx: PassContext) -> Outcome:
    """the maximum over windows of integers → along one axis after another, the maximum of shifted parts

    XLA's loop over windows is not made of vector instructions. Of floats the gradient would be another:
    shared between equal elements.
    """
    x = node.operands[0]
    if not jnp.issubdtype(x.dtype, np.integer) or 0 in (*x.shape, *node.result.shape):
        return None
    params = window_of_maximum(node)
    if params is None or sum(params["window_dimensions"]) - x.ndim > _MOST_PARTS:
        return None
    return rewrite(of_shifts, x, how=tuple(params.items()), pin=len(node.result.users()) > 1)


def of_shifts(x: jax.Array, *, how: Any, pin: bool) -> jax.Array:
    """The maximum over windows, one axis after another; in memory, if several operations read it."""
    params = dict(how)
    least = jnp.asarray(np.iinfo(x.dtype).min, x.dtype)
    x = lax.pad(x, least, [(low, high, 0) for low, high in params["padding"]])
    names = ("window_dimensions", "window_strides", "window_dilation")
    windows = zip(*(params[name] for name in names), strict=True)
    for axis, (taps, stride, apart) in enumerate(windows):
        if taps == stride == 1:
            continue
        count = (x.shape[axis] - (taps - 1) * apart - 1) // stride + 1
        parts = [
            lax.slice_in_dim(x, tap * apart, tap * apart + (count - 1) * stride + 1, stride, axis)
            for tap in range(taps)
        ]
        x = parts[0]
        for other in parts[1:]:
            x = lax.max(x, other)
    return lax.optimization_barrier(x) if pin else x


RULES: Final[tuple[Rule, ...]] = (codes_once, maximum_of_shifts)
