"""Caches of keys and values that a decoder's step writes to and reads."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import Case, Function, normal

HEADS, LENGTH, WIDTH = 12, 512, 64

Args = tuple[Any, ...]


def pinned(*operands: Any) -> Any:
    """An update that is not made twice."""
    return lax.optimization_barrier(lax.dynamic_update_slice(*operands))


def step(q: Any, new: Any, keys: Any, values: Any, position: Any, update: Any) -> Any:
    """q and new [batch, heads, width], the cache [batch, heads, length, width]."""
    keys = update(keys, new[:, :, None], (0, 0, position, 0))
    values = update(values, new[:, :, None], (0, 0, position, 0))
    scores = jnp.einsum("bhd,bhsd->bhs", q, keys) / WIDTH**0.5
    weights = jax.nn.softmax(jnp.where(jnp.arange(LENGTH) <= position, scores, -jnp.inf))
    return jnp.einsum("bhs,bhsd->bhd", weights, values), keys, values


def tokens(q: Any, new: Any, keys: Any, values: Any, position: Any, update: Any) -> Any:
    """Steps up to a position."""

    def body(i: Any, carry: Any) -> Any:
        q, keys, values = carry
        return step(q, new, keys, values, i, update)

    return lax.fori_loop(0, position, body, (q, keys, values))


def layers(q: Any, new: Any, keys: Any, values: Any, position: Any, update: Any) -> Any:
    """A step of several layers: the cache [layers, batch, heads, length, width]."""

    def body(q: Any, cache: Any) -> Any:
        out, *cache = step(q, new, cache[0], cache[1], position, update)
        return out, cache

    return lax.scan(body, q, (keys, values))


def cache(batch: int, *stack: int, position: int = 64) -> Args:
    """Arguments of a step."""
    row, shape = (batch, HEADS, WIDTH), (*stack, batch, HEADS, LENGTH, WIDTH)
    return (
        normal(*row),
        normal(*row, seed=1),
        normal(*shape, seed=2),
        normal(*shape, seed=3),
        jnp.int32(position),
    )


def _case(name: str, fun: Function, batch: int, *stack: int, stays: bool = False) -> Case:
    naive = partial(fun, update=lax.dynamic_update_slice)
    return Case(name, naive, naive if stays else partial(fun, update=pinned), partial(cache, batch, *stack))


CASES: Final = (
    _case("caches: a step of one row", step, 1),
    _case("caches: 64 steps of one row", tokens, 1),
    _case("caches: a step of 8 layers in a scan", layers, 1, 8),
    _case("caches: a step of 8 rows (stays)", step, 8, stays=True),
)
