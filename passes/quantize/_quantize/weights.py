"""A weight as codes and scales: what is kept of it, and what is computed from that at each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp

from lepton_jax.ir.binding import store
from lepton_jax.numerics.awq import awq
from lepton_jax.numerics.gptq import gptq
from lepton_jax.numerics.hessian import MatrixLayout
from lepton_jax.numerics.hqq import hqq
from lepton_jax.numerics.learned import scale_and_zero
from lepton_jax.numerics.packing import pack, packed_axis, unpack
from lepton_jax.numerics.quantize import Quantized, Scheme, encode, quantize
from lepton_jax.numerics.smoothquant import largest, smoothing


@dataclass(frozen=True)
class Storage:
    """How a weight is kept.

    Attributes:
        scheme: its format and what shares a scale.
        packed: without gaps between the codes, which are unpacked at each call.
        method: how codes are chosen: `round`, `hqq`, or `gptq`, which needs second moments of the inputs.
        learned: what training has learned of the scales, see `learned.kind_of`; None: nothing.
        layout: which axes of the weight are contracted.
    """

    scheme: Scheme
    packed: bool
    method: str = "round"
    layout: MatrixLayout = MatrixLayout()  # noqa: RUF009 — frozen
    learned: str | None = None

    @property
    def is_packed(self) -> bool:
        """Whether there are gaps to leave out."""
        return self.packed and self.scheme.fmt.bits < 8


def kept(weight: jax.Array, storage: Storage, known: Any = None) -> Quantized:
    """Codes, scale and zero of a weight; what depends on the weight alone is marked to be kept.

    Args:
        known: what calibration saw or training learned, see `learned.of_weight`.
    """
    q = stored(weight, storage, known)
    axis = packed_axis(weight.shape, storage.scheme.fmt.bits)
    return q._replace(codes=unpacked(q.codes, storage, weight.shape[axis], axis))


def stored(weight: jax.Array, storage: Storage, known: Any = None) -> Quantized:
    """What is kept of a weight: codes, packed along `packed_axis` if that is asked for, scale and zero."""
    q = coded(weight, storage, known)
    bits = storage.scheme.fmt.bits
    codes = pack(q.codes, bits, packed_axis(weight.shape, bits)) if storage.is_packed else q.codes
    return Quantized(store(codes), store(q.scale), None if q.zero is None else store(q.zero))


def coded(weight: jax.Array, storage: Storage, known: Any = None) -> Quantized:
    """Codes, not packed, scale and zero of a weight, not marked."""
    if storage.learned is not None:
        scale, zero = scale_and_zero(storage.learned, known, storage.scheme, weight.shape)
        return Quantized(encode(weight, scale, zero, storage.scheme), scale, zero)
    if storage.method == "gptq" and known is not None:
        found = gptq(weight, known, storage.scheme, layout=storage.layout, zeros_stay=True)
        codes: Quantized = found.quantized
        return codes
    return hqq(weight, storage.scheme) if storage.method == "hqq" else quantize(weight, storage.scheme)


def unpacked(codes: jax.Array, storage: Storage, size: int, axis: int) -> jax.Array:
    """Codes as they are computed with, of the stored ones; `size` is the weight's along the packed axis."""
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
        return _smoothing(greatest, [largest(w, axis) for w, axis in zip(weights, axes, strict=True)])
    moment = square if len(layout.axes) == 1 else None
    found: jax.Array = awq(weights[0], magnitude, scheme, moment=moment, axis=axes[0], layout=layout).scale
    return found


def _smoothing(greatest: jax.Array, sizes: Sequence[jax.Array]) -> jax.Array:
    """SmoothQuant's scale, such that channels which do not count do not set the scale of those that do.

    An input that no weight reads is divided by much; one that was always zero by what is usual.
    """
    largest_of_all = jnp.max(jnp.stack(sizes), initial=0.0)
    scale = smoothing(greatest, [jnp.maximum(size, _LEAST * largest_of_all) for size in sizes])
    is_used = greatest > 0
    usual = jnp.exp(jnp.sum(jnp.where(is_used, jnp.log(scale), 0.0)) / jnp.maximum(jnp.sum(is_used), 1))
    return jnp.where(is_used, scale, usual)


_LEAST: Final = 1e-5
"""The least a channel of a weight counts, as a part of its largest element."""


def as_float(x: Any) -> jax.Array:
    """An array in float32."""
    return jnp.asarray(x, jnp.float32)
