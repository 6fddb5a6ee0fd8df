"""Ragged products, as mixtures of experts have them: rows in groups, each with a matrix of its own."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.rewrite_cases._case import Case, normal

Args = tuple[Any, ...]


def in_tiles(x: Any, w: Any, sizes: Any, tile: int, dtype: Any = None) -> Any:
    """The product by hand: one loop over all tiles, each of rows of one group."""
    count = x.shape[0]
    ends = jnp.cumsum(sizes)
    tiles = -(-sizes // tile)
    last = jnp.cumsum(tiles)
    rows = jnp.pad(x, ((0, tile), (0, 0)))

    def step(t: Any, y: Any) -> Any:
        group = jnp.sum(last <= t)
        at = ends[group] - sizes[group] + (t - last[group] + tiles[group]) * tile
        part = lax.dynamic_slice_in_dim(rows, at, tile)
        new = jnp.matmul(part, w[group], preferred_element_type=y.dtype)
        is_own = (at + jnp.arange(tile) < ends[group])[:, None]
        new = jnp.where(is_own, new, lax.dynamic_slice_in_dim(y, at, tile))
        return lax.dynamic_update_slice_in_dim(y, new, at, 0)

    begin = jnp.zeros((count + tile, w.shape[2]), dtype or x.dtype)
    return lax.fori_loop(0, last[-1], step, begin)[:count]


def layer(x: Any, up: Any, down: Any, sizes: Any, product: Any) -> Any:
    """Two products: x [rows, width], up [experts, width, inner], down [experts, inner, width]."""
    return product(jax.nn.relu(product(x, up, sizes)), down, sizes)


def _of(x: Any, w: Any, sizes: Any, product: Any) -> Any:
    return product(x, w, sizes)


def _slopes(x: Any, up: Any, down: Any, sizes: Any, product: Any) -> Any:
    def loss(x: Any, up: Any, down: Any) -> Any:
        return jnp.sum(layer(x, up, down, sizes, product) ** 2)

    return jax.grad(loss, (0, 1, 2))(x, up, down)


def _by_hand(tile: int) -> Any:
    """The product in tiles, and derivatives that are made alike."""

    @jax.custom_vjp
    def product(x: Any, w: Any, sizes: Any) -> Any:
        return in_tiles(x, w, sizes, tile)

    def backward(kept: Any, slope: Any) -> Any:
        x, w, sizes = kept
        ends = jnp.cumsum(sizes)
        rows, slopes = (jnp.pad(a, ((0, tile), (0, 0))) for a in (x, slope))

        def of_group(group: Any) -> Any:
            first = ends[group] - sizes[group]

            def step(t: Any, total: Any) -> Any:
                at = first + t * tile
                is_own = (at + jnp.arange(tile) < ends[group])[:, None]
                a, b = (jnp.where(is_own, lax.dynamic_slice_in_dim(c, at, tile), 0) for c in (rows, slopes))
                return total + a.T @ b

            return lax.fori_loop(0, -(-sizes[group] // tile), step, jnp.zeros(w.shape[1:]))

        of_weights = lax.map(of_group, jnp.arange(w.shape[0]))
        return in_tiles(slope, w.transpose(0, 2, 1), sizes, tile), of_weights, None

    product.defvjp(lambda *args: (product(*args), args), backward)
    return product


def _sizes(rows: int, groups: int, uneven: bool = False) -> Any:
    share = 1 / np.arange(1, groups + 1) if uneven else np.ones(groups)
    mine = np.random.default_rng(0).choice(groups, rows, p=share / share.sum())
    return jnp.asarray(np.bincount(mine, minlength=groups), jnp.int32)


def _rows(rows: int, groups: int, width: int, dtype: Any = jnp.float32, **how: bool) -> Args:
    weights = normal(groups, width, width, seed=1) / width**0.5
    return normal(rows, width).astype(dtype), weights.astype(dtype), _sizes(rows, groups, **how)


def _layer(rows: int, groups: int, width: int) -> Args:
    up, down = normal(groups, width, 2 * width, seed=1), normal(groups, 2 * width, width, seed=2)
    return normal(rows, width), up / 16, down / 16, _sizes(rows, groups)


def _case(name: str, rows: int, groups: int, width: int, tile: int, **how: Any) -> Case:
    return Case(
        f"ragged: {name}",
        partial(_of, product=lax.ragged_dot),
        partial(_of, product=partial(in_tiles, tile=tile)),
        partial(_rows, rows, groups, width, **how),
        tolerance=2e-2 if "dtype" in how else 1e-3,
    )


def _stays(name: str, rows: int, groups: int, width: int) -> Case:
    naive = partial(_of, product=lax.ragged_dot)
    return Case(f"ragged: {name} (stays)", naive, naive, partial(_rows, rows, groups, width))


CASES: Final = (
    _case("512 rows, 8 experts", 512, 8, 512, 64),
    _case("512 rows, 8 experts, unevenly", 512, 8, 512, 64, uneven=True),
    _case("512 rows, 8 experts, bfloat16", 512, 8, 512, 64, dtype=jnp.bfloat16),
    _case("16 rows, 64 experts", 16, 64, 256, 8),
    _case("2 rows, 8 experts", 2, 8, 1024, 2),
    Case(
        "ragged: two layers and their gradient, 512 rows, 8 experts",
        partial(_slopes, product=lax.ragged_dot),
        partial(_slopes, product=_by_hand(64)),
        partial(_layer, 512, 8, 256),
    ),
    _stays("256 rows, 2 experts", 256, 2, 256),
    _stays("8 rows, 4 experts", 8, 4, 256),
)
