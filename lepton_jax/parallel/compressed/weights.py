"""All-gathers of weights in codes of 8 bits, for weights that are split over devices (FSDP).

Each device sends codes of its part and the scales of their blocks, and all compute with what these stand for
(ZeRO++, Wang et al., 2023: qwZ). The gradient passes as if nothing had been rounded; it goes back to the
part's owner by an exact reduce-scatter, or in codes too (qgZ).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.parallel.compressed.blocks import block_reduce_scatter
from lepton_jax.parallel.compressed.codes import FORMATS, from_message, to_message
from lepton_jax.parallel.compressed.manual import axes_size


def gather_weight(
    part: jax.Array,
    axes: str | Sequence[str],
    *,
    dim: int = 0,
    form: str = "int8",
    block: int = 256,
    gradient: str = "exact",
) -> jax.Array:
    """The whole weight of which each device has a part, through codes of 8 bits.

    As `jax.lax.all_gather(part, axes, axis=dim, tiled=True)`, and as differentiable: its gradient is the
    part's of the sum over devices (straight-through). Inside `jax.shard_map`.

    Args:
        part: floats, at least one dimension.
        axes: along which the weight is split, as `jax.lax` takes them.
        dim: the dimension that is split.
        form: of the codes: int8, fp8_e4m3 or fp8_e5m2.
        block: elements that share a scale, of the flattened part.
        gradient: how gradients go back: `exact`, or a form of codes.

    Returns:
        The weight in the dtype of the part: `dim` is as many times longer as there are devices.

    Raises:
        ValueError: an unknown form, or no `jax.shard_map` over these axes.
    """
    names = (axes,) if isinstance(axes, str) else tuple(axes)
    for name, known in ((form, FORMATS), (gradient, ("exact", *FORMATS))):
        if name not in known:
            raise ValueError(f"weights travel as one of {', '.join(known)}, not {name!r}")
    axes_size(names)
    return _gathered(part, names, dim % part.ndim, form, block, gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _gathered(
    part: jax.Array, axes: tuple[str, ...], dim: int, form: str, block: int, gradient: str
) -> jax.Array:
    flat = _filled(part.astype(jnp.float32).reshape(1, -1), block)
    came = lax.all_gather(to_message(flat, form, block), axes, axis=0, tiled=True)
    rows = from_message(came, flat.shape[1], form, block)[:, : part.size]
    whole = jnp.moveaxis(rows.reshape(-1, *part.shape), 0, dim)
    shape = [size * (rows.shape[0] if at == dim else 1) for at, size in enumerate(part.shape)]
    return whole.reshape(shape).astype(part.dtype)


def _forward(
    part: jax.Array, axes: tuple[str, ...], dim: int, form: str, block: int, gradient: str
) -> tuple[jax.Array, tuple[()]]:
    return _gathered(part, axes, dim, form, block, gradient), ()


def _backward(
    axes: tuple[str, ...], dim: int, form: str, block: int, gradient: str, _: Any, slope: jax.Array
) -> tuple[jax.Array]:
    if gradient == "exact":
        return (lax.psum_scatter(slope, axes, scatter_dimension=dim, tiled=True),)
    n = axes_size(axes)
    shape = list(slope.shape)
    shape[dim : dim + 1] = [n, shape[dim] // n]
    rows = jnp.moveaxis(slope.reshape(shape), dim, 0)
    flat = _filled(rows.astype(jnp.float32).reshape(n, -1), block)
    part, _lost = block_reduce_scatter(flat.reshape(-1), axes, gradient, block)
    size = rows[0].size
    return (part[:size].reshape(rows.shape[1:]).astype(slope.dtype),)


_gathered.defvjp(_forward, _backward)


def _filled(rows: jax.Array, block: int) -> jax.Array:
    return jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % block)))
