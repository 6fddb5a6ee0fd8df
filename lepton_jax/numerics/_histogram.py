"""Histograms whose range grows by powers of two, so that merging two of them is exact."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LEAST_EXPONENT: Final = -100
"""The exponent of an empty histogram; smaller ones would leave the normal numbers of float32."""


class Histogram(NamedTuple):
    """Counts of numbers in bins of equal width over [-2^exponent, 2^exponent).

    The width of a bin is a power of two, so the bin of a number is computed without rounding, and doubling
    the range joins neighbouring bins: whatever the order of updates and merges, the result is the same (while
    each bin counts fewer than 2^24 numbers; beyond that counts round as float32 does).

    Attributes:
        exponent: i32[...], the range. Across devices: pmax.
        counts: f32[..., bins]. Across devices: psum, once all have the largest exponent.
        zeros: f32[...], how many of the counted numbers were exactly zero. Across devices: psum.
    """

    exponent: jax.Array
    counts: jax.Array
    zeros: jax.Array


def empty_histogram(shape: tuple[int, ...], bins: int) -> Histogram:
    """One histogram without numbers for each index of `shape`.

    Raises:
        ValueError: if `bins` is no power of two of at least 8 and at most 65,536.
    """
    if bins < 8 or bins > 2**16 or bins & (bins - 1):
        raise ValueError(f"bins must be a power of two from 8 to 65536, not {bins}")
    exponent = jnp.full(shape, LEAST_EXPONENT, jnp.int32)
    return Histogram(exponent, jnp.zeros((*shape, bins), jnp.float32), jnp.zeros(shape, jnp.float32))


def add_numbers(histogram: Histogram, rows: jax.Array, counted: jax.Array) -> Histogram:
    """The histogram with more numbers in it.

    Args:
        histogram: one histogram a row.
        rows: f32[..., n], finite where counted.
        counted: bool[..., n], which of them count.
    """
    rows = jnp.where(counted, rows, 0.0)
    largest = jnp.max(jnp.abs(rows), axis=-1, initial=0.0)
    grown = widened(histogram, jnp.maximum(histogram.exponent, _exponent_above(largest)))
    bins = grown.counts.shape[-1]
    per_unit = power_of_two(int(np.log2(bins // 2)) - grown.exponent)
    index = jnp.floor(rows * per_unit[..., None]).astype(jnp.int32) + bins // 2
    flat = index.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
    # In integers: to a large count in float32, one number after another adds nothing.
    fresh = jax.vmap(lambda i, w: jnp.zeros(bins, jnp.int32).at[i].add(w, mode="drop"))(
        flat, counted.astype(jnp.int32).reshape(flat.shape)
    )
    counts = grown.counts + fresh.astype(jnp.float32).reshape(grown.counts.shape)
    zeros = grown.zeros + jnp.sum(counted & (rows == 0), axis=-1, dtype=jnp.int32).astype(jnp.float32)
    return Histogram(grown.exponent, counts, zeros)


def widened(histogram: Histogram, exponent: jax.Array) -> Histogram:
    """The same numbers in bins of a range that is as large or larger: 2^exponent instead of its own."""
    bins = histogram.counts.shape[-1]
    steps = jnp.clip(exponent - histogram.exponent, 0, 31).reshape(-1)
    flat = histogram.counts.reshape(-1, bins)
    centred = jnp.arange(bins, dtype=jnp.int32) - bins // 2

    def joined(counts: jax.Array, step: jax.Array) -> jax.Array:
        return jnp.zeros_like(counts).at[(centred >> step) + bins // 2].add(counts)

    return Histogram(exponent, jax.vmap(joined)(flat, steps).reshape(histogram.counts.shape), histogram.zeros)


def merged(left: Histogram, right: Histogram) -> Histogram:
    """The numbers of both."""
    exponent = jnp.maximum(left.exponent, right.exponent)
    left, right = widened(left, exponent), widened(right, exponent)
    return Histogram(exponent, left.counts + right.counts, left.zeros + right.zeros)


def merged_over(histogram: Histogram, axis_name: str | tuple[str, ...]) -> Histogram:
    """The numbers of all devices along a mapped axis."""
    wide = widened(histogram, lax.pmax(histogram.exponent, axis_name))
    return Histogram(wide.exponent, lax.psum(wide.counts, axis_name), lax.psum(wide.zeros, axis_name))


def quantile(histogram: Histogram, tail: float, *, side: str) -> jax.Array:
    """The number that a part of the numbers lies beyond, f32[...], within the width of a bin.

    Between two numbers it interpolates linearly, as numpy does.

    Args:
        histogram: what was counted.
        tail: which part of the numbers lies beyond, 0 to 1.
        side: `low` (beyond is below), `high` (beyond is above) or `size` (beyond is farther from zero).
    """
    exponent, counts, _ = histogram
    half = counts.shape[-1] // 2
    width = power_of_two(exponent - int(np.log2(half)))
    if side == "size":
        counts = counts[..., half:] + counts[..., half - 1 :: -1]
    depth = _depth(counts if side == "low" else counts[..., ::-1], tail)
    return (depth - half if side == "low" else half - depth) * width


def _depth(counts: jax.Array, tail: float) -> jax.Array:
    """How many bins from the outside this part of the numbers reaches."""
    # Counted from the outside, since there the sums are small and float32 adds them exactly.
    sums = jnp.cumsum(counts, axis=-1)
    rank = tail * jnp.maximum(sums[..., -1] - 1, 0)

    def position(k: jax.Array) -> jax.Array:
        index = jnp.minimum(jnp.sum(sums <= k[..., None], axis=-1), counts.shape[-1] - 1)
        inside = jnp.take_along_axis(counts, index[..., None], -1)[..., 0]
        before = jnp.take_along_axis(sums, index[..., None], -1)[..., 0] - inside
        return index + jnp.clip((k + 0.5 - before) / jnp.maximum(inside, 1), 0, 1)

    near = position(jnp.floor(rank))
    return near + (rank - jnp.floor(rank)) * (position(jnp.ceil(rank)) - near)


def samples_of(histogram: Histogram, points: int) -> tuple[jax.Array, jax.Array]:
    """Numbers that stand for those counted, and how many each of them stands for.

    Each bin gives `points` numbers evenly spread over it; exact zeros are left out, since every format keeps
    them.

    Returns:
        Two arrays f32[..., bins · points], the numbers in ascending order.
    """
    exponent, counts, zeros = histogram
    bins = counts.shape[-1]
    counts = counts.at[..., bins // 2].add(-zeros)
    places = (np.arange(bins * points, dtype=np.float32) + 0.5) / points - bins // 2
    width = power_of_two(exponent - int(np.log2(bins // 2)))
    return jnp.asarray(places) * width[..., None], jnp.repeat(counts / points, points, axis=-1)


def power_of_two(exponent: jax.Array) -> jax.Array:
    """2^exponent in float32, exactly, for -126 to 127."""
    bits = (jnp.clip(exponent, -126, 127).astype(jnp.int32) + 127) << 23
    return lax.bitcast_convert_type(bits, jnp.float32)


def _exponent_above(size: jax.Array) -> jax.Array:
    """The least exponent with size < 2^exponent, at least LEAST_EXPONENT."""
    bits = lax.bitcast_convert_type(size.astype(jnp.float32), jnp.int32)
    return jnp.maximum((bits >> 23) - 126, LEAST_EXPONENT)
