"""Palettes in training: learned centroids, and assignments that have a gradient."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics.palettes import palette as palettes
from lepton_jax.numerics.palettes.palette import PaletteScheme

_HARD_STEPS: Final = 2
_STEPS: Final = 2
_LEAST: Final = 1e-12


def trained(
    codes: jax.Array, palette: jax.Array, scheme: PaletteScheme, dtype: Any = jnp.float32
) -> jax.Array:
    """The weight of codes, whose gradient goes to the palette: each entry has the sum of its members'.

    Deep Compression's trained quantisation (Han et al., arXiv:1510.00149): codes stay, entries are learned.
    The entry that stands for zeros stays zero.

    Args:
        codes: uint8.
        palette: f32[groups, 2^bits, vector].
        scheme: how.
        dtype: of the result.
    """
    found: jax.Array = palettes.decode(codes, held(palette, scheme), scheme, dtype)
    return found


def held(palette: jax.Array, scheme: PaletteScheme) -> jax.Array:
    """A palette whose entry for zeros is zero, whatever an optimiser has made of it."""
    if not scheme.zeros:
        return palette
    return jnp.where(jnp.arange(scheme.entries)[:, None] == 0, 0.0, palette)


def soft(
    weight: jax.Array, start: jax.Array, scheme: PaletteScheme, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """The weight as a mixture of palette entries, and the palettes; the gradient goes through both.

    Differentiable k-means (DKM, Cho et al., arXiv:2108.12659): an element w has a share of entry c
    that is softmax(-|w - c|² / (temperature · s²)), with s² the mean square of the group's distances
    from its mean; each entry becomes the mean of its shares. Steps with hard assignments, which have no
    gradient, go before, so that the last steps begin near where they end.

    Args:
        weight: floats.
        start: f32[groups, 2^bits, vector], near the weight's palettes.
        scheme: how.
        temperature: above 0; towards 0 assignments become hard.

    Returns:
        The weight, of its own shape and dtype, with zeros where it has zeros if `scheme.zeros`; and the
        palettes, f32[groups, 2^bits, vector].
    """
    points = palettes._points(jnp, weight, scheme).astype(jnp.float32)
    found, mixed = jax.vmap(partial(_soft, scheme=scheme, temperature=temperature))(points, start)
    return _restored(mixed, weight.shape, scheme).astype(weight.dtype), found


def _soft(
    points: jax.Array, start: jax.Array, *, scheme: PaletteScheme, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Palette and mixtures of vectors [n, d]."""
    is_zero = jnp.all(points == 0, -1) if scheme.zeros else jnp.zeros(points.shape[0], bool)
    mass = jnp.where(is_zero, 0.0, 1.0)
    fixed = lax.stop_gradient(points)
    middle = jnp.sum(fixed * mass[:, None], 0) / jnp.maximum(jnp.sum(mass), 1)
    size = jnp.sum(jnp.square(fixed - middle) * mass[:, None]) / jnp.maximum(jnp.sum(mass), 1)
    scale = temperature * jnp.maximum(size, _LEAST)
    settled = _settled(fixed, mass, lax.stop_gradient(start), int(scheme.zeros))

    return steps(points, settled, scale, mass, scheme)


def steps(
    points: jax.Array, centroids: jax.Array, scale: jax.Array, mass: jax.Array, scheme: PaletteScheme
) -> tuple[jax.Array, jax.Array]:
    """Centroids after soft steps, and the mixtures of vectors.

    Args:
        points: f32[n, d].
        centroids: f32[k, d].
        scale: a squared distance by which shares fall to 1/e, f32[].
        mass: f32[n], 0 of vectors that are zero and stay so.
        scheme: how.
    """

    def shares(centroids: jax.Array) -> jax.Array:
        away = jnp.sum(jnp.square(points[:, None] - centroids), -1)
        return jax.nn.softmax(-away / scale, axis=-1)

    for _ in range(_STEPS):
        share = shares(centroids) * mass[:, None]
        total = jnp.sum(share, 0)[:, None]
        means = share.T @ points / jnp.where(total > _LEAST, total, 1)
        centroids = held(jnp.where(total > _LEAST, means, centroids), scheme)
    return centroids, mass[:, None] * (shares(centroids) @ centroids)


def _settled(points: jax.Array, mass: jax.Array, start: jax.Array, fixed: int) -> jax.Array:
    """Centroids after a few of Lloyd's steps, the first `fixed` of which stay."""
    centroids = start
    for _ in range(_HARD_STEPS):
        away = jnp.sum(jnp.square(centroids), 1) - 2 * points @ centroids.T
        own = jax.nn.one_hot(jnp.argmin(away, 1), start.shape[0]) * mass[:, None]
        total = jnp.sum(own, 0)[:, None]
        moves = (total > 0) & (jnp.arange(start.shape[0]) >= fixed)[:, None]
        centroids = jnp.where(moves, own.T @ points / jnp.where(total > 0, total, 1), centroids)
    return centroids


def _restored(points: jax.Array, shape: tuple[int, ...], scheme: PaletteScheme) -> jax.Array:
    """Vectors [groups, points, vector] in the shape of a weight."""
    small = scheme.codes_shape(shape)
    if scheme.axis is None:
        whole = points.reshape(*small, scheme.vector)
    else:
        rest = [n for i, n in enumerate(small) if i != scheme.axis]
        whole = points.reshape(-1, *rest, scheme.vector)[: small[scheme.axis]]
        whole = jnp.moveaxis(whole, 0, scheme.axis)
    if scheme.vector == 1:
        return whole[..., 0]
    return jnp.moveaxis(whole, -1, scheme.vector_axis + 1).reshape(shape)
