"""Ranges of numbers that a format rounds best, found by trying many on a histogram."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._histogram import Histogram, samples_of

Range: TypeAlias = tuple[jax.Array, jax.Array]
Rounding: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Numbers f32[n] and the ends of a range f32[] → the numbers as a format keeps them."""

_POINTS = 4  # numbers that stand for a bin
_UNSEEN = 1e-7  # probability of what the rounded distribution has nothing of


def least_squares(
    histogram: Histogram, extremes: Range, rounded: Rounding, *, symmetric: bool, candidates: int
) -> Range:
    """The range with the least expected squared rounding error, two f32[...].

    Symmetric ranges shrink in `candidates` equal steps from the extremes. Of others, both ends shrink
    together first, then each by itself, twice.
    """

    def one(numbers: jax.Array, weights: jax.Array, low: jax.Array, high: jax.Array) -> Range:
        size = jnp.maximum(jnp.maximum(-low, high), float(jnp.finfo(jnp.float32).tiny))

        def error(ends: Range) -> jax.Array:
            off = (rounded(numbers, *ends) - numbers) / size
            return jnp.sum(jnp.where(weights > 0, weights * jnp.square(off), 0.0))

        parts = _parts(candidates)
        best = _best(error, (low * parts, high * parts))
        if symmetric:
            return best
        for _ in range(2):
            best = _best(error, (low * parts, jnp.broadcast_to(best[1], parts.shape)))
            best = _best(error, (jnp.broadcast_to(best[0], parts.shape), high * parts))
        return best

    return _for_each(one, histogram, extremes, symmetric, points=_POINTS)


def least_divergence(
    histogram: Histogram, extremes: Range, rounded: Rounding, *, symmetric: bool, candidates: int
) -> Range:
    """The range that keeps most information: the least divergence of rounded from original numbers.

    The Kullback-Leibler divergence of the numbers' distribution, clipped to the range, from that distribution
    averaged over each level of the format, as in Migacz, "8-bit Inference with TensorRT" (GTC 2017). Only
    ranges that hold at least as many bins as the format has levels are tried.

    Returns:
        The range's ends, two f32[...].
    """

    def one(numbers: jax.Array, weights: jax.Array, low: jax.Array, high: jax.Array) -> Range:
        def levels(ends: Range) -> jax.Array:
            values = rounded(numbers, *ends)
            steps = values[1:] != values[:-1]  # a difference of equal products need not be zero: fused
            return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(steps, dtype=jnp.int32)])

        count = levels((low, high))[-1] + 1

        def error(ends: Range) -> jax.Array:
            inside = (numbers >= ends[0]) & (numbers <= ends[1])
            enough = (jnp.sum(inside) >= count) | ((ends[0] == low) & (ends[1] == high))
            return jnp.where(enough, _divergence(weights, inside, levels(ends)), jnp.inf)

        parts = _parts(candidates)
        return _best(error, (low * parts, high * parts))

    return _for_each(one, histogram, extremes, symmetric, points=1)


def _divergence(weights: jax.Array, inside: jax.Array, level: jax.Array) -> jax.Array:
    kept = jnp.where(inside, weights, 0.0)
    first, last = jnp.argmax(inside), len(inside) - 1 - jnp.argmax(inside[::-1])
    places = jnp.arange(len(inside))
    clipped = kept.at[first].add(jnp.sum(jnp.where(places < first, weights, 0.0)))
    clipped = clipped.at[last].add(jnp.sum(jnp.where(places > last, weights, 0.0)))
    occupied = clipped > 0
    sums = jnp.zeros_like(kept).at[level].add(kept)
    members = jnp.zeros_like(kept).at[level].add(occupied.astype(kept.dtype))
    averaged = jnp.where(occupied, (sums / jnp.maximum(members, 1))[level], 0.0)
    p = clipped / jnp.maximum(jnp.sum(clipped), 1e-30)
    q = jnp.maximum(averaged / jnp.maximum(jnp.sum(averaged), 1e-30), _UNSEEN)
    return jnp.sum(jnp.where(occupied, p * (jnp.log(jnp.maximum(p, 1e-30)) - jnp.log(q)), 0.0))


def _parts(candidates: int) -> jax.Array:
    """From the whole down to one step, so that of equal candidates the widest is taken."""
    return jnp.arange(candidates, 0, -1, dtype=jnp.float32) / candidates


def _best(error: Callable[[Range], jax.Array], tried: Range) -> Range:
    index = jnp.argmin(lax.map(error, tried))
    return tried[0][index], tried[1][index]


def _for_each(
    one: Callable[..., Range], histogram: Histogram, extremes: Range, symmetric: bool, points: int
) -> Range:
    shape = histogram.exponent.shape
    numbers, weights = samples_of(histogram, points)
    low, high = jnp.minimum(extremes[0], 0), jnp.maximum(extremes[1], 0)
    if symmetric:
        high = jnp.maximum(-low, high)
        low = -high
    size = numbers.shape[-1]
    flat = (numbers.reshape(-1, size), weights.reshape(-1, size), low.reshape(-1), high.reshape(-1))
    found = lax.map(lambda row: one(*row), flat)
    return found[0].reshape(shape), found[1].reshape(shape)
