"""Reductions over the elements that share a scale, and scales spread over their elements."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Blocks = tuple[int | None, ...]
"""Per axis, how many elements share a scale; None for all."""

_REDUCTIONS: dict[str, tuple[Callable[..., jax.Array], float]] = {
    "max": (jnp.max, -np.inf),
    "min": (jnp.min, np.inf),
    "sum": (jnp.sum, 0.0),
}


def counts_of_blocks(shape: tuple[int, ...], blocks: Blocks) -> tuple[int, ...]:
    """Per axis, how many blocks there are: the shape of a scale."""
    return tuple(_count(n, block) for n, block in zip(shape, blocks, strict=True))


def _count(size: int, block: int | None) -> int:
    if block is None:
        return 1
    return size if block == 1 else -(-size // block)  # sizes may be symbolic


def shortages(shape: tuple[int, ...], blocks: Blocks) -> tuple[int, ...]:
    """Per axis, by how much the last block is short."""
    return tuple(0 if block in (None, 1) else -n % block for n, block in zip(shape, blocks, strict=True))


def reduce_blocks(
    x: jax.Array, blocks: Blocks, kind: Literal["max", "min", "sum"], initial: float
) -> jax.Array:
    """The maximum, minimum or sum of each block and of `initial`: the shape of a scale."""
    reduce, neutral = _REDUCTIONS[kind]
    shared = tuple(axis for axis, block in enumerate(blocks) if block is None)
    if all(block in (None, 1) for block in blocks):
        return reduce(x, axis=shared, keepdims=True, initial=initial)
    counts = counts_of_blocks(x.shape, blocks)
    x = _filled(x, blocks, neutral)
    shape: list[int] = []
    inner: list[int] = []
    for n, block in zip(x.shape, blocks, strict=True):
        if block is not None and block > 1:
            shape.append(n // block)
            n = block
        if block != 1:
            inner.append(len(shape))
        shape.append(n)
    return reduce(x.reshape(shape), axis=tuple(inner), initial=initial).reshape(counts)


def _filled(x: jax.Array, blocks: Blocks, value: float) -> jax.Array:
    """An array of whole blocks."""
    short = shortages(x.shape, blocks)
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), [(0, by, 0) for by in short]) if any(short) else x


def elements_of_blocks(shape: tuple[int, ...], blocks: Blocks) -> np.ndarray[Any, Any]:
    """How many elements each block has, int64, of a shape that broadcasts against the scale."""
    found = np.ones((1,) * len(shape), np.int64)
    for axis, (n, block) in enumerate(zip(shape, blocks, strict=True)):
        if block == 1:
            continue
        many = np.full(_count(n, block), n if block is None else block)
        if block is not None:
            many[-1:] -= -n % block
        found = found * many.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return found


def gather_blocks(x: jax.Array, blocks: Blocks, fill: float) -> jax.Array:
    """The elements of each block along a new last axis; what fills up short blocks is `fill`."""
    many = counts_of_blocks(x.shape, blocks)
    x = _filled(x, blocks, fill)
    sizes = [n if block is None else block for n, block in zip(x.shape, blocks, strict=True)]
    x = x.reshape([size for pair in zip(many, sizes, strict=True) for size in pair])
    order = [*range(0, x.ndim, 2), *range(1, x.ndim, 2)]
    return x.transpose(order).reshape([*many, prod(sizes)])


def expand_blocks(scale: jax.Array, blocks: Blocks, shape: tuple[int, ...]) -> jax.Array:
    """Scales so that they broadcast against an array of `shape`: groups are repeated, the last is cut.

    Raises:
        ValueError: a scale of another rank, unless it is a scalar.
    """
    if scale.ndim and scale.ndim != len(shape):
        raise ValueError(f"a scale of shape {scale.shape} for an array of shape {shape}: ranks must agree")
    if not scale.ndim:
        return scale
    for axis, block in enumerate(blocks):
        if block is None or block == 1 or scale.shape[axis] == 1:
            continue
        before, many, after = scale.shape[:axis], scale.shape[axis], scale.shape[axis + 1 :]
        wide = jnp.broadcast_to(jnp.expand_dims(scale, axis + 1), (*before, many, block, *after))
        scale = wide.reshape(*before, many * block, *after)
        if scale.shape[axis] != shape[axis]:
            scale = jax.lax.slice_in_dim(scale, 0, shape[axis], axis=axis)
    return scale
