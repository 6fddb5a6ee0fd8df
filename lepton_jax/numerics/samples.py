"""Arrays to try a program on: random, extreme and special values of a shape and dtype."""

from __future__ import annotations

from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
import numpy as np

Flavour = Literal["random", "extreme", "special", "zeros", "ones"]

FLAVOURS: Final[tuple[Flavour, ...]] = ("random", "extreme", "special", "zeros", "ones")


def sample(aval: Any, flavour: Flavour, rng: np.random.Generator) -> Any:
    """An array of the shape and dtype of `aval`.

    Args:
        aval: anything with `shape` and `dtype`; PRNG key types too.
        flavour: `random`: normal floats, small non-negative integers; `extreme`: magnitudes from the least
            to the greatest; `special`: NaN, infinities, signed zeros and subnormals among
            normal numbers; `zeros`; `ones`.
        rng: where randomness comes from.
    """
    shape, dtype = tuple(aval.shape), aval.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        count = int(np.prod(shape))
        keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), max(count, 1))
        return keys[:count].reshape(shape)
    if dtype == jax.dtypes.float0:
        return np.zeros(shape, dtype)
    if dtype == np.bool_:
        return jnp.asarray(_bools(flavour, shape, rng))
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.asarray(_integers(dtype, flavour, shape, rng))
    if jnp.issubdtype(dtype, jnp.complexfloating):
        part = np.zeros((), dtype).real.dtype
        real, imag = _floats(part, flavour, shape, rng), _floats(part, flavour, shape, rng)
        return jnp.asarray((real + 1j * imag).astype(dtype))
    return jnp.asarray(_floats(dtype, flavour, shape, rng))


def _bools(flavour: Flavour, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    if flavour in ("zeros", "ones"):
        return np.full(shape, flavour == "ones")
    return rng.integers(2, size=shape).astype(bool)


def _integers(dtype: Any, flavour: Flavour, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    if flavour in ("zeros", "ones"):
        return np.full(shape, int(flavour == "ones")).astype(dtype)
    if flavour == "random":
        return rng.integers(0, 4, size=shape).astype(dtype)
    info = jnp.iinfo(dtype)
    edges = np.array([info.min, info.max, 0, 1, info.max // 2], dtype=np.dtype(dtype))
    return rng.choice(edges, size=shape)


def _floats(dtype: Any, flavour: Flavour, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    normal = rng.standard_normal(shape)
    if flavour in ("zeros", "ones"):
        return np.full(shape, float(flavour == "ones")).astype(dtype)
    if flavour == "random":
        return normal.astype(dtype)
    info = jnp.finfo(dtype)
    if flavour == "extreme":
        low, high = np.log10(float(info.tiny)), np.log10(float(info.max))
        return (np.sign(normal) * 10.0 ** rng.uniform(low, high, shape)).astype(dtype)
    specials = np.array(
        [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, float(info.tiny) / 2, float(info.max)]
    )
    return np.where(rng.random(shape) < 0.3, rng.choice(specials, size=shape), normal).astype(dtype)
