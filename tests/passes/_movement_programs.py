"""Random chains of operations that move data, for tests of what the rules do together."""

from __future__ import annotations

import random
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Arrays = list[jax.Array]
Step = Callable[[random.Random, jax.Array, Arrays], Arrays]


def program(seed: int, steps: int = 8) -> Callable[[jax.Array], Arrays]:
    """A function of one array: random steps, each on one of the last two results."""

    def fun(x: jax.Array) -> Arrays:
        rng = random.Random(seed)
        values = [x, x | x if x.dtype == bool else x + x]
        for _ in range(steps):
            made = rng.choice(STEPS)(rng, rng.choice(values[-2:]), values)
            values += [value for value in made if value.size <= 2000]
        return [value for value in values[2:-1] if rng.random() < 0.25] + [values[-1]]

    return fun


def _some(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(d for d in range(count) if rng.random() < 0.5)


def _order(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.sample(range(count), count))


def _transposes(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    once = lax.transpose(x, _order(rng, x.ndim))
    return [once, lax.transpose(once, _order(rng, x.ndim))]


def _reshape(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    if x.size == 0:
        return [jnp.expand_dims(x, 0)]
    divisor = rng.choice([d for d in range(1, x.size + 1) if x.size % d == 0])
    return [x.reshape(divisor, x.size // divisor), x.reshape(-1)]


def _units(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    if x.ndim > 3:
        return [lax.squeeze(x, tuple(d for d in range(x.ndim) if x.shape[d] == 1))]
    wide = jnp.expand_dims(x, rng.randint(0, x.ndim))
    return [wide, lax.squeeze(wide, tuple(d for d in _some(rng, wide.ndim) if wide.shape[d] == 1))]


def _broadcast(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    if x.ndim > 3:
        return []
    dims = sorted(rng.sample(range(4), x.ndim))
    shape = [rng.randint(1, 3) for _ in range(4)]
    for d, out in enumerate(dims):
        shape[out] = x.shape[d] if x.shape[d] != 1 else rng.randint(1, 2)
    wide = lax.broadcast_in_dim(x, shape, dims)
    made = [wide, lax.transpose(wide, _order(rng, 4)), lax.rev(wide, _some(rng, 4))]
    return [rng.choice(made), jnp.max(wide, _some(rng, 4)) if wide.size else wide]


def _slice(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    start = [rng.randint(0, length) if rng.random() < 0.3 else 0 for length in x.shape]
    limit = [
        rng.randint(first, length) if rng.random() < 0.3 else length
        for first, length in zip(start, x.shape, strict=True)
    ]
    return [lax.slice(x, start, limit, [rng.choice([1, 1, 1, 2]) for _ in start])]


def _reverse(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    once = lax.rev(x, _some(rng, x.ndim))
    return [once, lax.rev(once, _some(rng, x.ndim))]


def _join(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    if x.ndim == 0:
        return [jnp.stack([x, x])]
    axis = rng.randrange(x.ndim)
    sides = [*x.shape]
    sides.pop(axis)
    fit = [v for v in values if v.ndim == x.ndim and [n for d, n in enumerate(v.shape) if d != axis] == sides]
    cut = rng.randint(0, x.shape[axis])
    left, right = lax.split(x, (cut, x.shape[axis] - cut), axis=axis)
    joined = lax.concatenate(rng.choices(fit, k=rng.randint(1, 3)), axis)
    return [joined, rng.choice([lax.concatenate([left, right], axis), left, right])]


def _stack(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    stacked = jnp.stack([x, lax.rev(x, tuple(range(x.ndim)))])
    return [stacked[rng.randint(0, 1)], jnp.stack(jnp.unstack(stacked))]


def _pad(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    def config() -> list[tuple[int, int, int]]:
        return [rng.choice([(0, 0, 0), (1, 0, 0), (0, 2, 0), (1, 1, 0), (0, 0, 1)]) for _ in x.shape]

    fill = np.zeros((), x.dtype)
    once = lax.pad(x, fill, config())
    return [lax.pad(once, fill, config()), *_slice(rng, once, values)]


def _dynamic(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    sizes = [rng.randint(min(1, length), length) for length in x.shape]
    start = [np.int32(rng.randint(-2, 4)) for _ in sizes]
    part = lax.dynamic_slice_p.bind(x, *start, slice_sizes=tuple(sizes))
    written = lax.dynamic_update_slice_p.bind(x, part, *[np.int32(rng.randint(0, 2)) for _ in sizes])
    return [written, part]


def _scalar(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    number = np.asarray(rng.choice([0, 1, 2]), x.dtype)
    wide = lax.broadcast_in_dim(number, x.shape, ())
    return [x & wide if x.dtype == bool else x * wide, lax.select_n(x != x, x, wide)]


def _reduce(rng: random.Random, x: jax.Array, values: Arrays) -> Arrays:
    if 0 in x.shape:
        return []
    moved = lax.transpose(x, _order(rng, x.ndim))
    reduce = jnp.any if x.dtype == bool else rng.choice([jnp.max, jnp.min])
    return [reduce(moved, axis=_some(rng, x.ndim))]


STEPS: list[Step] = [
    _transposes,
    _reshape,
    _units,
    _broadcast,
    _slice,
    _reverse,
    _join,
    _stack,
    _pad,
    _dynamic,
    _scalar,
    _reduce,
]
