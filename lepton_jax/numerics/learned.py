"""Numbers of a quantiser that training learns: step sizes, thresholds and ends of ranges."""

from __future__ import annotations

from typing import Final, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.numerics.quantize import Scheme, scale_of_range, scale_shape
from lepton_jax.numerics.straight_through import (
    learned_range,
    learned_step,
    learned_threshold,
    straight_through,
    threshold_scale,
)

Train = Literal["none", "ste", "lsq", "tqt", "pact"]

LEAST: Final = 2.0**-100
"""What a learned number that has to be positive is at least."""

_COUNTS: Final = {"step": 1, "threshold": 1, "bound": 1, "range": 2}

_SCALES: Final = {f"{of}-{kind}": count for of in ("weight", "input") for kind, count in _COUNTS.items()}

LEARNED: Final = {**_SCALES, "weight-factors": 2, "weight-adapters": 2, "weight-palette": 1}
"""How many arrays training learns at a site, by what is learned there."""

Arrays = tuple[jax.Array, ...]


def kind_of(train: Train, scheme: Scheme) -> str | None:
    """What is learned of a quantiser: `step`, `threshold`, `bound` or `range`; None: nothing.

    Scales of microscaling formats are powers of two and are not learned. An affine scheme has two ends, which
    are learned whatever was asked for.
    """
    if train in ("none", "ste") or scheme.fmt.block:
        return None
    if not scheme.symmetric:
        return "range"
    return {"lsq": "step", "tqt": "threshold", "pact": "bound"}[train]


def start_of(kind: str, scale: jax.Array, zero: jax.Array | None, scheme: Scheme) -> Arrays:
    """The numbers that stand for a scale and a zero: where learning starts."""
    if kind == "step":
        return (scale,)
    if kind == "range":
        low, high = scheme.limits
        middle = jnp.zeros_like(scale) if zero is None else zero.astype(jnp.float32)
        return (low - middle) * scale, (high - middle) * scale
    bound = scale * np.float32(scheme.span)
    return (bound,) if kind == "bound" else (jnp.log2(bound),)


def fake(x: jax.Array, kind: str | None, arrays: Arrays, scheme: Scheme) -> jax.Array:
    """What quantising makes of `x`, with the gradients of training.

    Args:
        x: floats; the result has its shape and dtype.
        kind: what is learned; None: nothing.
        arrays: the numbers that are learned; or the ends of a range that is known and stays; or nothing.
        scheme: how.
    """
    if kind is None:
        if not arrays:
            return straight_through(x, scheme)
        low, high = arrays
        return straight_through(x, scheme, *scale_of_range(low, high, scheme))
    arrays = _fitted(arrays, scale_shape(x.shape, scheme))
    if kind == "step":
        return learned_step(x, positive(arrays[0]), scheme)
    if kind == "threshold":
        return learned_threshold(x, arrays[0], scheme)
    if kind == "bound":
        bound = positive(arrays[0])
        return learned_range(x, -bound, bound, scheme)
    low, high = arrays
    return learned_range(x, low, high, scheme)


def scale_and_zero(
    kind: str, arrays: Arrays, scheme: Scheme, shape: tuple[int, ...] | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """Scale and zero that `fake` rounds with, bit for bit: what to convert with after training.

    Args:
        kind: what was learned.
        arrays: the numbers.
        scheme: how.
        shape: of what is rounded; None: the numbers have the scale's shape, or are scalars.

    Raises:
        ValueError: the numbers were learned for an array of another form.
    """
    if shape is not None:
        arrays = _fitted(arrays, scale_shape(shape, scheme))
    if kind == "step":
        return positive(arrays[0]), None
    if kind == "threshold":
        return threshold_scale(arrays[0], scheme), None
    if kind == "bound":
        bound = positive(arrays[0])
        return scale_of_range(-bound, bound, scheme)
    low, high = arrays
    return scale_of_range(low, high, scheme)


def _fitted(arrays: Arrays, shape: tuple[int, ...]) -> Arrays:
    """Numbers in the shape of a scale; they may have been learned with more or fewer axes of size 1.

    The kernel of a 1×1 convolution, [1, 1, inputs, outputs], has a step for each output, [1, 1, 1, outputs].
    Where `default` makes a product of it, which goes by the size of the batch, the same steps are
    [1, outputs].

    Raises:
        ValueError: they are for another form of the array.
    """
    if all(array.ndim == len(shape) for array in arrays):
        return arrays
    sizes = [size for size in shape if size != 1]
    if any(array.ndim and [n for n in array.shape if n != 1] != sizes for array in arrays) or len(sizes) > 1:
        raise ValueError(
            f"numbers of shape {arrays[0].shape} were learned, and a scale of shape {shape} is wanted: at "
            "these sizes of the inputs the weight has another form than where training began, as `default` "
            "chooses forms by size; put quantize before default in the pipeline, as in "
            "'cleanup,movement,quantize{...},default', or train and call with inputs of one size"
        )
    return tuple(array.reshape(shape) for array in arrays)


def positive(x: jax.Array) -> jax.Array:
    """A number that has to be positive, whatever an optimiser has made of it."""
    return jnp.maximum(jnp.abs(x), LEAST)
