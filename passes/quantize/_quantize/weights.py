"""A weight as codes and scales: what is kept of it, and what is computed from that at each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.ir.binding import store
from lepton_jax.numerics.awq import awq
from lepton_jax.numerics.gptq import gptq
from lepton_jax.numerics.hessian import MatrixLayout
from lepton_jax.numerics.hqq import hqq
from lepton_jax.numerics.packing import pack, unpack
from lepton_jax.numerics.quantize import Quantized, Scheme, quantize
from lepton_jax.numerics.smoothquant import largest, smoothing


@dataclass(frozen=True)
class Storage:
    """How a weight is kept.

    Attributes:
        scheme: its format and what shares a scale.
        packed: without gaps between the codes, which are unpacked at each call.
        method: how codes are chosen: `round`, `hqq`, or `gptq`, which needs second moments of the inputs.
        layout: which axes of the weight are contracted.
    """

    scheme: Scheme
    packed: bool
    method: str = "round"
    layout: MatrixLayout = MatrixLayout()  # noqa: RUF009 — frozen

    @property
    def is_packed(self) -> bool:
        """Whether there are gaps to leave out."""
        return self.packed and self.scheme.fmt.bits < 8


def kept(weight: jax.Array, storage: Storage, hessian: jax.Array | None = None) -> Quantized:
    """Codes, scale and zero of a weight; what depends on the weight alone is marked to be kept."""
    q = stored(weight, storage, hessian)
    return q._replace(codes=unpacked(q.codes, storage, weight.shape[-1]))


def stored(weight: jax.Array, storage: Storage, hessian: jax.Array | None = None) -> Quantized:
    """What is kept of a weight: codes, packed along the last axis if that is asked for, scale and zero."""
    if storage.method == "gptq" and hessian is not None:
        q = gptq(weight, hessian, storage.scheme, layout=storage.layout).quantized
    elif storage.method == "hqq":
        q = hqq(weight, storage.scheme)
    else:
        q = quantize(weight, storage.scheme)
    codes = pack(q.codes, storage.scheme.fmt.bits) if storage.is_packed else q.codes
    return Quantized(store(codes), store(q.scale), None if q.zero is None else store(q.zero))


def unpacked(codes: jax.Array, storage: Storage, size: int, axis: int = -1) -> jax.Array:
    """Codes as they are computed with, of the stored ones; `size` is that of the weight's last axis."""
    form = storage.scheme.fmt
    return unpack(codes, form.bits, size, axis, form.signed_codes) if storage.is_packed else codes


def summed(codes: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The sums of integer codes over some axes, which stay with size 1: int32."""
    return jnp.sum(codes, axes, dtype=jnp.int32, keepdims=True)


def balance(
    weights: Sequence[jax.Array],
    axes: tuple[int, ...],
    channels: tuple[jax.Array, ...],
    how: str,
    scheme: Scheme,
    layout: MatrixLayout,
) -> jax.Array:
    """What to multiply each input channel of a weight with, and to divide its inputs by.

    Args:
        weights: the weight, and all others that read the same input.
        axes: their input channels.
        channels: of the inputs the greatest magnitudes, the mean ones, and the mean squares.
        how: `smoothquant` or `awq`.
        scheme: of the first weight.
        layout: of the first weight.
    """
    greatest, magnitude, square = channels
    if how == "smoothquant":
        return smoothing(greatest, [largest(w, axis) for w, axis in zip(weights, axes, strict=True)])
    moment = square if len(layout.axes) == 1 else None
    found: jax.Array = awq(weights[0], magnitude, scheme, moment=moment, axis=axes[0], layout=layout).scale
    return found


def as_float(x: Any) -> jax.Array:
    """An array in float32."""
    return jnp.asarray(x, jnp.float32)
