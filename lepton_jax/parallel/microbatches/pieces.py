"""Arrays cut along the batch and put together again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.parallel.microbatches.states import Part


def parted(array: Any, part: Part, count: int) -> Any:
    """An array with the rounds as its leading dimension: [count, …, its part, …]."""
    shape = array.shape
    inner = shape[part.dim] // (part.outer * count)
    open_shape = (*shape[: part.dim], part.outer, count, inner, *shape[part.dim + 1 :])
    moved = jnp.moveaxis(array.reshape(open_shape), part.dim + 1, 0)
    return moved.reshape(count, *shape[: part.dim], part.outer * inner, *shape[part.dim + 1 :])


def joined(array: Any, part: Part, count: int) -> Any:
    """The array of which `parted` makes this one."""
    shape = array.shape[1:]
    inner = shape[part.dim] // part.outer
    open_shape = (count, *shape[: part.dim], part.outer, inner, *shape[part.dim + 1 :])
    moved = jnp.moveaxis(array.reshape(open_shape), 0, part.dim + 1)
    return moved.reshape(*shape[: part.dim], part.outer * count * inner, *shape[part.dim + 1 :])


def cut_out(array: Any, part: Part, count: int, index: Any) -> Any:
    """The part of one round of a whole array."""
    shape = array.shape
    inner = shape[part.dim] // (part.outer * count)
    open_shape = (*shape[: part.dim], part.outer, count, inner, *shape[part.dim + 1 :])
    found = jax.lax.dynamic_index_in_dim(array.reshape(open_shape), index, part.dim + 1, keepdims=False)
    return found.reshape(*shape[: part.dim], part.outer * inner, *shape[part.dim + 1 :])


def lanes_first(array: Any, dim: int, lanes: int) -> Any:
    """An array with the major part of a dimension, one for each lane, as its leading dimension."""
    shape = array.shape
    open_shape = (*shape[:dim], lanes, shape[dim] // lanes, *shape[dim + 1 :])
    return jnp.moveaxis(array.reshape(open_shape), dim, 0)
