"""Measures what the machine at hand is good at, so that the cost model need not guess."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
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


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is computed in each measurement.

    Attributes:
        matrix: rows and columns of the matrices multiplied.
        stream: elements of the float32 array that is read and written.
        vector: elements of the float32 array that arithmetic runs on.
        rounds: how often each measurement is repeated; the least time counts.
    """

    matrix: int = 1024
    stream: int = 2**25
    vector: int = 2**16
    rounds: int = 9


LARGE: Final = Sizes(matrix=8192, stream=2**28, vector=2**24)
"""For GPU and TPU."""

SMALL: Final = Sizes(matrix=64, stream=2**16, vector=2**12, rounds=3)
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
    node = _per_node(sizes)
    return Rates(
        name=platform,
        platform=platform,
        flops=MappingProxyType(flops),
        vector_flops=_arithmetic(sizes),
        bytes_per_second=_stream(sizes),
        seconds_per_node=node,
        seconds_per_iteration=max(_per_iteration(sizes) - node, 1e-8),
    )


def kept() -> Rates | None:
    """The rates that `calibrate` measured on this machine, if it was run."""
    found = records.read(KIND, "")
    try:
        return None if found is None else Rates(**{**found, "flops": MappingProxyType(found["flops"])})
    except (TypeError, KeyError):  # written by another version of Lepton
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


def _stream(sizes: Sizes) -> float:
    """Bytes a second, read and written, of an array that no cache holds."""
    return 8.0 * sizes.stream / _least(lambda x: x + 1, sizes, jnp.zeros(sizes.stream, jnp.float32))


def _per_node(sizes: Sizes) -> float:
    """What one more operation takes that nothing is fused with."""

    def run(x: jax.Array) -> jax.Array:
        for _ in range(_CHAIN):
            x = x @ x
        return x

    x = jnp.eye(4)
    return max(_least(run, sizes, x) - _least(lambda x: x @ x, sizes, x), 1e-8) / (_CHAIN - 1)


def _per_iteration(sizes: Sizes) -> float:
    """What one more round of a loop takes that does next to nothing."""
    rounds = 1000

    def run(x: jax.Array, length: int) -> Any:
        return lax.fori_loop(0, length, lambda i, c: c * x + i, x)

    x = jnp.float32(0.5)
    many, one = (_least(lambda x, n=n: run(x, n), sizes, x) for n in (rounds, 1))
    return max(many - one, 1e-6) / (rounds - 1)
