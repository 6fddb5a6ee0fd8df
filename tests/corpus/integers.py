"""Integers, bits, orders, indices and small number formats."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._program import Program, floats, integers


def bit_tricks(x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Packing, hashing and counting on uint32, with wrap-around."""
    h = x ^ (x >> 16)
    h = h * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return {
        "hash": h ^ (h >> 16),
        "rotated": (x << 7) | (x >> 25),
        "ones": lax.population_count(x),
        "zeros": lax.clz(x),
        "lowest": x & -x,
        "power": jnp.where((x & (x - 1)) == 0, ~x, x),
        "shift": lax.shift_right_arithmetic(x.astype(jnp.int32), y.astype(jnp.int32) % 32),
        "bytes": lax.bitcast_convert_type(x, jnp.uint8),
        "packed": jnp.packbits((y[:, None] >> jnp.arange(8, dtype=jnp.uint32)) & 1 == 1, axis=-1),
    }


def division(x: jax.Array, y: jax.Array) -> dict[str, Any]:
    """The several divisions of signed numbers, powers, extremes and overflow."""
    quotient, rest = jnp.divmod(x, y)
    return {
        "floor": quotient * y + rest - x,
        "towards_zero": lax.div(x, y),
        "sign": lax.rem(x, y) + jnp.sign(x),
        "common": jnp.gcd(jnp.abs(x), jnp.abs(y)),
        "power": x**3 + 2**5,
        "narrow": (x.astype(jnp.int8) * jnp.int8(3)).astype(jnp.int16),
        "true": x / y,
        "most": jnp.iinfo(jnp.int32).max - jnp.abs(x) + jnp.abs(x),
        "clamped": lax.clamp(jnp.int32(-5), x, jnp.int32(5)),
    }


def fast_inverse_root(x: jax.Array) -> jax.Array:
    """The inverse square root by its bits, with one correction."""
    i = 0x5F3759DF - (lax.bitcast_convert_type(x, jnp.int32) >> 1)
    y = lax.bitcast_convert_type(i, jnp.float32)
    return y * (1.5 - 0.5 * x * y * y)


def orders(x: jax.Array, keys: jax.Array) -> dict[str, Any]:
    """Sorting in its forms, on numbers with ties."""
    ranked = jnp.argsort(keys, stable=True)
    first, second = lax.sort((keys, x), num_keys=1)
    unique, inverse, counts = jnp.unique(keys, return_inverse=True, return_counts=True, size=5, fill_value=-1)
    return {
        "ranked": x[ranked],
        "inverse": jnp.zeros_like(ranked).at[ranked].set(jnp.arange(len(ranked))),
        "pairs": (first, second),
        "top": lax.top_k(x, 3),
        "unique": (unique, inverse, counts),
        "places": jnp.searchsorted(jnp.sort(keys), jnp.arange(6), side="right"),
        "median": jnp.median(x),
        "nonzero": jnp.nonzero(keys > 2, size=6, fill_value=-1)[0],
    }


def segments(x: jax.Array, owner: jax.Array) -> dict[str, jax.Array]:
    """Sums, extremes and softmax over the nodes of a graph by its edges; some segments are empty."""
    largest = jax.ops.segment_max(x, owner, 5)
    share = jnp.exp(x - largest[owner])
    share = share / jax.ops.segment_sum(share, owner, 5)[owner]
    return {
        "softmax": share,
        "largest": jnp.where(jnp.isfinite(largest), largest, 0),
        "product": jax.ops.segment_prod(lax.stop_gradient(x), owner, 5, indices_are_sorted=False),
        "sum": jax.ops.segment_sum(x[:, None] * jnp.ones(2), owner, num_segments=5),
    }


def scatters(x: jax.Array, rows: jax.Array, values: jax.Array) -> dict[str, jax.Array]:
    """Updates at indices, some twice and some out of bounds, in every mode."""
    return {
        "add": x.at[rows].add(values),
        "max": x.at[rows, 1].max(values[:, 0]),
        "min": x.at[rows].min(values, mode="drop"),
        "multiply": x.at[rows[:2], rows[2:4]].multiply(2.0, mode="clip"),
        "set": x.at[jnp.array([2, 0])].set(values[:2], unique_indices=True),
        "apply": lax.stop_gradient(x).at[1:3, ::2].apply(jnp.sin),
        "fill": x.at[:, -1].set(0.0).at[0].divide(2.0),
    }


def gathers(x: jax.Array, rows: jax.Array) -> dict[str, jax.Array]:
    """Reads at indices: modes, ellipses, masks of fixed size, steps and negative numbers."""
    return {
        "fill": x.at[rows].get(mode="fill", fill_value=jnp.nan),
        "clip": jnp.take(x, rows, axis=1, mode="clip"),
        "wrap": jnp.take(x, rows, axis=0, mode="wrap"),
        "pairs": x[rows[:, None] % 3, rows[None, :] % 3],
        "slices": x[::-1, 1:-1, None] + x[..., -1:][:, None],
        "dynamic": lax.dynamic_slice(x, (rows[0], rows[1]), (2, 2)),
        "index": lax.dynamic_index_in_dim(x, rows[2], axis=1, keepdims=False) + x[rows[0] % 4],
    }


def shapes(x: jax.Array) -> dict[str, jax.Array]:
    """Padding with negative and inner amounts, rolling, stacking, tiling, splitting and triangles."""
    left, right = jnp.split(x, 2, axis=1)
    return {
        "crop": lax.pad(x, 0.5, ((-1, 0, 0), (2, -1, 1))),
        "reflect": jnp.pad(x, ((1, 1), (2, 0)), mode="reflect"),
        "roll": jnp.roll(x, (1, -2), axis=(0, 1)) + jnp.rot90(jnp.rot90(x)),
        "stack": jnp.stack([left, right], axis=-1).reshape(x.shape[0], -1),
        "tile": jnp.tile(x[:, None, :2], (1, 2, 3)).transpose(2, 0, 1),
        "triangle": jnp.triu(x, 1) - jnp.tril(x) + jnp.diag(jnp.diagonal(x), 0)[:, :1],
        "blocks": jnp.block([[x, x[:, :1]], [x[:1], jnp.zeros((1, 1))]]),
        "moved": jnp.moveaxis(x.reshape(2, 2, 2, 2), (0, 3), (2, 0)).squeeze().swapaxes(0, 1),
    }


def masks(x: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Booleans as masks: reductions with `where`, logic, counts and NaN."""
    broken = jnp.where(mask, x, jnp.nan)
    return {
        "mean": jnp.mean(x, axis=0, where=mask) + jnp.max(x, axis=0, where=mask, initial=-9.0),
        "logic": (mask & ~(x > 0)) | (mask ^ jnp.isnan(broken)),
        "counts": jnp.sum(mask, axis=1) + jnp.argmax(mask, axis=1),
        "any": jnp.any(mask, axis=0) & jnp.all(mask | (x < 1), axis=0),
        "nan": jnp.nansum(broken) + jnp.nanmax(broken),
        "broken": broken.cumsum(axis=1),
        "equal": jnp.array_equal(mask, mask) & jnp.allclose(x, x),
    }


def small_formats(x: jax.Array, weight: jax.Array) -> dict[str, Any]:
    """Casts to float8, bfloat16 and float16, and products of int8 that sum in int32."""
    scale = jnp.max(jnp.abs(x)) / 127
    quantised = jnp.clip(jnp.round(x / scale), -127, 127).astype(jnp.int8)
    narrow = quantised.astype(jnp.int32)
    return {
        "float8": x.astype(jnp.float8_e4m3fn).astype(jnp.float32)
        + x.astype(jnp.float8_e5m2).astype(jnp.float32),
        "dot": lax.dot(quantised, weight, preferred_element_type=jnp.int32),
        "product": (narrow @ weight.astype(jnp.int32)).astype(jnp.float32) * scale,
        "bfloat16": jnp.einsum("ij,kj->ik", x.astype(jnp.bfloat16), x.astype(jnp.bfloat16)),
        "float16": (x.astype(jnp.float16) * 1e4).sum(axis=-1),
        "mixed": x.astype(jnp.bfloat16) + 1.5,
        "rounded": lax.reduce_precision(x, exponent_bits=5, mantissa_bits=3),
    }


def words() -> tuple[np.ndarray, np.ndarray]:
    return integers(6, high=2**32, dtype=np.uint32), integers(6, high=256, seed=1, dtype=np.uint32)


def signed() -> tuple[np.ndarray, np.ndarray]:
    return np.array([7, -7, 7, -7, 0, 41], np.int32), np.array([2, 2, -2, -3, 5, 6], np.int32)


ROWS = (1, 3, 1, 7, -1)

PROGRAMS = [
    Program("bit_tricks", bit_tricks, words, vmappable=True, exportable=True),
    Program("integer_division", division, signed, vmappable=True, exportable=True),
    Program(
        "fast_inverse_root", fast_inverse_root, lambda: (np.array([0.2, 1, 9], np.float32),), vmappable=True
    ),
    Program("orders", orders, lambda: (floats(8), integers(8, high=5)), exportable=True),
    Program(
        "segments", segments, lambda: (floats(7), integers(7, high=4)), (0,), vmappable=True, exportable=True
    ),
    Program(
        "scatters",
        scatters,
        lambda: (floats(4, 4), np.array(ROWS, np.int32), floats(5, 4)),
        (0, 2),
        exportable=True,
    ),
    Program("gathers", gathers, lambda: (floats(4, 4), np.array(ROWS, np.int32)), vmappable=True),
    Program("shapes", shapes, lambda: (floats(4, 4),), (0,), vmappable=True, exportable=True),
    Program("masks", masks, lambda: (floats(4, 5), floats(4, 5, seed=1) > -0.5), vmappable=True),
    Program(
        "small_formats", small_formats, lambda: (floats(3, 4), integers(4, 2, low=-9, high=9, dtype=np.int8))
    ),
]
