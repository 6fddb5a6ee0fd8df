"""Measures what the machine at hand is good at, so that the cost model need not guess."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir import _jax
from lepton_jax.ir.cost import Rates
from lepton_jax.targets import records

KIND: Final = "rates"
_DTYPES: Final = ("float32", "bfloat16", "float16", "int8")
_CHAIN: Final = 64
_ROUNDS: Final = 1000


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is computed in each measurement.

    Attributes:
        matrix: rows and columns of the matrices multiplied.
        stream: elements of the float32 array that is read and written in main memory.
        caches: the same for arrays that a cache holds, from the smallest; a rate counts up to twice the size.
        vector: elements of the float32 array that arithmetic runs on.
        rounds: how often each measurement is repeated; the least time counts.
    """

    matrix: int = 1024
    stream: int = 2**25
    caches: tuple[int, ...] = (2**17, 2**21)
    vector: int = 2**16
    rounds: int = 9


LARGE: Final = Sizes(matrix=8192, stream=2**28, caches=(), vector=2**24)
"""For GPU and TPU."""

SMALL: Final = Sizes(matrix=64, stream=2**16, caches=(2**12,), vector=2**12, rounds=3)
"""For tests: the figures are those of starting things, not of computing."""


def calibrate(sizes: Sizes | None = None) -> tuple[Rates, Path | None]:
    """Measure JAX's default device and keep the figures; takes less than a minute.

    From then on `get_target()` without a name, and so `lepton.optimize` without a target, uses them on this
    machine. Delete the file to go back to the built-in figures.

    Returns:
        The rates, and the file they were written to (None if none could be written).
    """
    platform = _jax.backend_platform()
    rates = measure(platform, sizes or (Sizes() if platform == "cpu" else LARGE))
    return rates, records.write(KIND, "", as_json(rates))


def measure(platform: str, sizes: Sizes) -> Rates:
    """The rates of JAX's default device."""
    flops = {dtype: _products(dtype, sizes) for dtype in _DTYPES}
    flops["uint8"] = flops["int8"]
    flops["complex64"] = flops["float32"]
    flops["float64"] = flops["float32"] / 2
    node = _per_step(_product, sizes)
    call = _in_place(1, sizes)
    rates = {
        n: 8.0 * n / max(_in_place(n, sizes) - call, 1e-9) for n in (sizes.stream, *reversed(sizes.caches))
    }
    streamed, *cached = accumulate(rates.values(), max)
    compiled = _per_iteration(_largest, 1, sizes)
    once, twice = (_per_iteration(_product, count, sizes) for count in (1, 2))
    on_cpu = platform == "cpu"
    return Rates(
        name=platform,
        platform=platform,
        flops=MappingProxyType(flops),
        vector_flops=_arithmetic(sizes),
        bytes_per_second=streamed,
        seconds_per_node=node,
        seconds_per_iteration=max(2 * once - twice, compiled),
        seconds_per_fusion=_per_step(_largest, sizes) if on_cpu else None,
        seconds_per_compiled_iteration=compiled if on_cpu else None,
        caches=tuple((8.0 * n, rate) for n, rate in zip(sizes.caches, reversed(cached), strict=True)),
        fresh_bytes_per_second=min(_fresh(sizes, streamed), streamed) if on_cpu else None,
    )


def kept() -> Rates | None:
    """The rates that `calibrate` measured on this machine, if it was run."""
    found = records.read(KIND, "")
    try:
        if found is None:
            return None
        caches = tuple((float(size), float(rate)) for size, rate in found["caches"])
        return Rates(**{**found, "flops": MappingProxyType(found["flops"]), "caches": caches})
    except (TypeError, KeyError, ValueError):  # written by another version of Lepton
        return None


def as_json(rates: Rates) -> Mapping[str, Any]:
    """The rates as plain numbers."""
    return {f.name: getattr(rates, f.name) for f in dataclasses.fields(rates)} | {"flops": dict(rates.flops)}


def _least(fun: Callable[..., Any], sizes: Sizes, *args: Any) -> float:
    """The least seconds of several runs of a jitted function."""
    compiled = jax.jit(fun).lower(*args).compile()
    jax.block_until_ready(compiled(*args))
    times = []
    for _ in range(sizes.rounds):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)


def _products(dtype: str, sizes: Sizes) -> float:
    """Operations a second of products of square matrices."""
    n = sizes.matrix
    a = jnp.ones((n, n), dtype)
    wide = jnp.int32 if dtype == "int8" else jnp.float32
    return 2.0 * n**3 / _least(lambda a, b: jnp.matmul(a, b, preferred_element_type=wide), sizes, a, a)


def _arithmetic(sizes: Sizes) -> float:
    """Elementwise operations a second, in one loop over an array that stays in the cache."""

    def polynomial(x: jax.Array) -> jax.Array:
        y = x
        for _ in range(_CHAIN):
            y = y * x + 0.5
        return y

    return 2.0 * _CHAIN * sizes.vector / _least(polynomial, sizes, jnp.full(sizes.vector, 0.5, jnp.float32))


def _in_place(elements: int, sizes: Sizes) -> float:
    """The least seconds of adding one to an array in place."""
    compiled = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.zeros(elements, jnp.float32)).compile()
    x = jax.block_until_ready(compiled(jnp.zeros(elements, jnp.float32)))
    times = []
    for _ in range(sizes.rounds):
        start = time.perf_counter()
        x = jax.block_until_ready(compiled(x))
        times.append(time.perf_counter() - start)
    return min(times)


def _fresh(sizes: Sizes, rate: float) -> float:
    """Bytes a second of writing a large array for the first time, where others go at `rate`."""
    took = _least(lambda x: x + 1, sizes, jnp.zeros(sizes.stream, jnp.float32))
    size = 4.0 * sizes.stream
    return size / max(took - size / rate, 1e-9)


def _product(x: jax.Array) -> jax.Array:
    """A kernel of a library."""
    return x @ x


def _largest(x: jax.Array) -> jax.Array:
    """A kernel that XLA writes, and cannot merge with the next."""
    return jnp.max(jnp.abs(x)[:, None] * x, 0)


def _per_step(step: Callable[[jax.Array], jax.Array], sizes: Sizes) -> float:
    """What one more step takes that nothing is fused with."""
    x = jnp.ones((4, 4) if step is _product else 4) / 4
    many, one = (_least(functools.partial(_repeated, step, n), sizes, x) for n in (_CHAIN, 1))
    return max(many - one, 1e-8) / (_CHAIN - 1)


def _per_iteration(step: Callable[[jax.Array], jax.Array], count: int, sizes: Sizes) -> float:
    """What one more round of a loop takes that is so many steps."""

    def run(x: jax.Array, length: int) -> Any:
        return lax.fori_loop(0, length, lambda _, c: _repeated(step, count, c), x)

    x = jnp.ones((4, 4) if step is _product else 4) / 4
    many, one = (_least(functools.partial(run, length=n), sizes, x) for n in (_ROUNDS, 1))
    return max(many - one, 1e-6) / (_ROUNDS - 1)


def _repeated(step: Callable[[jax.Array], jax.Array], count: int, x: jax.Array) -> jax.Array:
    for _ in range(count):
        x = step(x)
    return x
